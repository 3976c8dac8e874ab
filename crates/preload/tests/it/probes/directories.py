os.mkdir('d'); names = [f'name-{i:03}' for i in range(400)]
for n in names: put('d/' + n)
os.mkdir('d/sub'); os.symlink('x', 'd/link'); os.mkfifo('d/fifo')
show('all', lambda: sorted(os.listdir('d')) == sorted(names + ['sub', 'link', 'fifo']))
show('types', lambda: sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink(), e.is_file(follow_symlinks=False)) for e in os.scandir('d') if not e.name.startswith('name')))
show('inodes', lambda: all(e.inode() == os.lstat('d/' + e.name).st_ino for e in os.scandir('d')))
show('none', os.listdir, 'none'); show('file', os.listdir, 'd/name-000')
fd = os.open('d', os.O_RDONLY)
show('by fd', lambda: len(os.listdir(fd))); show('again', lambda: len(os.listdir(fd)))
class Dirent(ctypes.Structure):
    _fields_ = [('ino', ctypes.c_ulong), ('off', ctypes.c_long), ('reclen', ctypes.c_ushort), ('type', ctypes.c_ubyte), ('name', ctypes.c_char * 256)]
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.telldir.restype = ctypes.c_long
dir = ctypes.c_void_p(c('opendir', b'd', result=ctypes.c_void_p))
def rest():
    found = []
    while e := libc.readdir(dir): found.append((e.contents.name, e.contents.type))
    return found
whole = rest(); print(len(whole), sum(1 for n, t in whole if n in (b'.', b'..')))
libc.rewinddir(dir); print(rest() == whole)
libc.rewinddir(dir)
for _ in range(100): libc.readdir(dir)
at = libc.telldir(dir); tail = rest(); libc.seekdir(dir, ctypes.c_long(at)); print(rest() == tail, len(tail))
print(libc.dirfd(dir) > 2, os.fstat(libc.dirfd(dir)).st_ino == os.stat('d').st_ino)
for n in names[::2]: os.unlink('d/' + n)
libc.rewinddir(dir); print(len(rest()))
libc.rewinddir(dir); entry, result = Dirent(), ctypes.POINTER(Dirent)()
count = 0
while libc.readdir_r(dir, ctypes.byref(entry), ctypes.byref(result)) == 0 and result: count += 1
print(count, libc.closedir(dir))
dup = os.dup(fd); dir = ctypes.c_void_p(c('fdopendir', dup, result=ctypes.c_void_p))
os.lseek(fd, 0, os.SEEK_SET); libc.rewinddir(dir); print(len(rest())); libc.closedir(dir)
show('closed', os.fstat, dup)
show('fdopendir of a file', c, 'fdopendir', os.open('d/name-001', os.O_RDONLY), result=ctypes.c_void_p)
buf = ctypes.create_string_buffer(100000)
os.lseek(fd, 0, os.SEEK_SET)
show('getdents', lambda: c('getdents64', fd, buf, 100000) > 1000); show('at its end', c, 'getdents64', fd, buf, 100000)
os.lseek(fd, 0, os.SEEK_SET); show('no room', c, 'getdents64', fd, buf, 5)
os.lseek(fd, 0, os.SEEK_SET); show('by number', lambda: c('syscall', 217, fd, buf, 100000) > 1000)
show('of a file', c, 'getdents64', os.open('d/name-001', os.O_RDONLY), buf, 100)
order = ctypes.cast(libc.alphasort, ctypes.c_void_p); list = ctypes.POINTER(ctypes.POINTER(Dirent))()
n = c('scandir', b'd', ctypes.byref(list), None, order, result=ctypes.c_int)
print(n, [list[i].contents.name for i in range(3)], list[n - 1].contents.name)
os.mkdir('gone'); gfd = os.open('gone', os.O_RDONLY); os.rmdir('gone')
show('removed', os.listdir, gfd); show('make in removed', lambda: os.mkdir('x', dir_fd=gfd))
show('glob', lambda: sorted(__import__('glob').glob('d/*9*'))[:3])
