# Buffers of every kind of call that lie in a mapping of the file itself, on pages that are there and pages that are not.
import mmap

SIZE = 65536
CONTENT = bytes(n // 256 & 0xFF for n in range(SIZE))

def mapped(name, flags=0, share=mmap.MAP_SHARED):
    fd = os.open(name, os.O_RDWR | flags)
    return fd, memoryview(mmap.mmap(fd, SIZE, share))

def cold(view):
    """Pages of the mapping go; the file's stay."""
    view.obj.madvise(mmap.MADV_DONTNEED)
    return view

def address(view, at):
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(view, at)))

for kind, flags in (('buffered', 0), ('direct', os.O_DIRECT)):
    name = 'mapped-' + kind
    put(name, CONTENT)
    os.sync()
    fd, view = mapped(name, flags)
    show(kind + ' write from it', os.pwritev, fd, [view[32768:40960]], 0)
    show(kind + ' write over itself', os.pwritev, fd, [cold(view)[16384:20480]], 16384)
    show(kind + ' read into it', os.preadv, fd, [cold(view)[40960:49152]], 0)
    show(kind + ' read over itself', os.preadv, fd, [view[20480:24576]], 20480)
    show(kind + ' parts', os.pwritev, fd, [view[0:4096], view[49152:53248], view[4096:8192]], 53248)
    show(kind + ' content', get, name)
    os.fsync(fd)
    show(kind + ' append from it', lambda: (os.lseek(fd, SIZE, 0), os.writev(fd, [cold(view)[8192:12288]])))
    show(kind + ' size', lambda: os.fstat(fd).st_size)

put('m', CONTENT)
fd, view = mapped('m')
r, w = os.pipe()
show('pipe from it', os.writev, w, [cold(view)[49152:49352]])
show('pipe into it', os.readv, r, [cold(view)[61440:61640]])
show('stored', lambda: bytes(view[61440:61640]) == CONTENT[49152:49352])
put('other', b'o' * 10000)
other = os.open('other', os.O_RDWR)
show('another file into it', os.preadv, other, [cold(view)[4000:12000]], 5)
show('it into another file', os.pwritev, other, [cold(view)[12000:20000]], 3)
show('another file', get, 'other')
os.setxattr('m', 'user.a', b'value of an attribute')
show('attribute into it', c, 'fgetxattr', fd, b'user.a', address(cold(view), 100), 64)
show('names of attributes into it', c, 'flistxattr', fd, address(cold(view), 4096), 64)
show('attribute from it', c, 'fsetxattr', fd, b'user.b', address(cold(view), 20480), 50, 0)
show('attribute', os.getxattr, 'm', 'user.b')
show('stat into it', c, 'fstat', fd, address(cold(view), 8192))
show('size there', lambda: struct.unpack_from('q', view, 8192 + 48))
show('flags into it', lambda: fcntl.ioctl(fd, 0x80086601, cold(view)[12288:12296]))
os.symlink('where it leads', 'link')
show('link into it', c, 'readlink', b'link', address(cold(view), 24576), 100)
show('directory into it', lambda: c('getdents64', os.open('.', os.O_RDONLY), address(cold(view), 28672), 4096) > 0)
view[8192:8192 + 144] = bytes(144)
view[28672:32768] = bytes(4096)
show('content', get, 'm')
# The program's own copy.
fd, view = mapped('m', share=mmap.MAP_PRIVATE)
show('write from a private one', os.pwritev, fd, [view[0:4096]], 4096)
show('read into a private one', os.preadv, fd, [view[8192:12288]], 0)
show('equal there', lambda: bytes(view[8192:12288]) == bytes(view[0:4096]))
show('content', get, 'm')
# What MAP_SHARED_VALIDATE lets through; and MAP_SYNC, which is for persistent memory.
def mapped_with(flags):
    at = c('mmap', None, 4096, 3, flags, fd, 0)
    c('munmap', ctypes.c_void_p(at), 4096)
    return 'mapped'

fd = os.open('m', os.O_RDWR)
for label, flags in (('MAP_SYNC', 3 | 0x80000), ('not validated', 1 | 0x80000), ('private', 2 | 0x80000), ('validated', 3),
                     ('populated', 3 | 0x8000), ('without a reserve', 3 | 0x4000), ('unknown', 3 | 0x200000)):
    show(label, mapped_with, flags)
# A file that is in its inode still, or in one block.
put('small', b'small')
fd = os.open('small', os.O_RDWR)
view = memoryview(mmap.mmap(fd, 5))
show('small over itself', os.pwritev, fd, [view], 0)
show('small, twice', os.pwritev, fd, [view, view], 5)
show('small into it', os.preadv, fd, [view], 3)
show('small content', get, 'small')
# Linux 6.18 loses what a system call stored through a mapping of content in an inode: no later than here.
put('small', b'')
