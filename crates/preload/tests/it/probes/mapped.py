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
# A page past the end of its file: what could not be given was not read, and the position says so.
put('tiny', b'tiny')
tiny = os.open('tiny', os.O_RDWR)
at = c('mmap', None, 8192, 3, 1, tiny, 0)
put('source', CONTENT)
fd = os.open('source', os.O_RDONLY)
show('read past the end', c, 'read', fd, at + 4096, 100)
show('position', os.lseek, fd, 0, os.SEEK_CUR)
show('half of it', c, 'read', fd, at + 4096 - 50, 100)
show('position', os.lseek, fd, 0, os.SEEK_CUR)
show('in parts', os.readv, fd, [bytearray(10), (ctypes.c_char * 100).from_address(at + 4096)])
show('position', os.lseek, fd, 0, os.SEEK_CUR)
folder = os.open('.', os.O_RDONLY)
show('listing past the end', c, 'getdents64', folder, at + 4096, 4096)
room = ctypes.create_string_buffer(1 << 16)
all = c('getdents64', os.open('.', os.O_RDONLY), room, 1 << 16)
# The kernel leaves the padding behind the last name unwritten: up to 7 bytes may lie past the end.
show('a part of a listing', lambda: 0 < c('getdents64', folder, at + 4096 - 100, 4096) < 108)
show('nothing is left out', lambda: all - c('getdents64', folder, room, 1 << 16) < 108)
# Advice: the kernel drops a private mapping's copies; the C library's own function of that name does nothing.
fd, view = mapped('source', share=mmap.MAP_PRIVATE)
view[5:8] = b'own'
show('posix_madvise', c, 'posix_madvise', address(view, 0), 4096, 4)
show('its own', lambda: bytes(view[5:8]))
show('madvise', c, 'madvise', address(view, 0), 4096, 4)
show('the file again', lambda: bytes(view[4:9]))
# The same by number, and with a key.
if os.uname().machine == 'x86_64':
    fd = os.open('source', os.O_RDWR)
    at = c('mmap', None, 16384, 1, 1, fd, 0)
    word = lambda n: ctypes.c_char.from_address(at + n)
    def store(n, byte):
        word(n).value = byte
        return word(n).value
    show('mprotect', c, 'syscall', 10, at, 8192, 3)
    show('store', store, 4097, b'n')
    show('pkey_mprotect', c, 'pkey_mprotect', at + 8192, 4096, 3, -1)
    show('store', store, 8192, b'k')
    show('by number', c, 'syscall', 329, at + 12288, 4096, 3, -1)
    show('store', store, 12288, b'm')
    show('msync', c, 'syscall', 26, at, 16384, 4)
    show('madvise', c, 'syscall', 28, at, 16384, 4)
    moved = c('syscall', 25, at, 16384, 32768, 1)
    at = moved
    show('moved', lambda: (word(4097).value, word(8192).value, word(12288).value, word(20000).value == CONTENT[20000:20001]))
    show('munmap of a part', c, 'syscall', 11, at + 8192, 4096)
    show('the rest', store, 12289, b'r')
    show('msync', c, 'msync', at, 8192, 4)
    show('gone', c, 'msync', at, 32768, 4)
    show('content', lambda: get('source')[4096:12300])
# Half of a mapping is protected and let go again: it is one, and can be moved.
fd = os.open('source', os.O_RDWR)
at = c('mmap', None, 16384, 3, 1, fd, 0)
show('a half', c, 'mprotect', at + 8192, 8192, 1)
show('and back', c, 'mprotect', at + 8192, 8192, 3)
show('moved whole', lambda: c('mremap', at, 16384, 65536, 1) > 0)
