# Mappings of what no file has: they are made, and each access is SIGBUS.
put('f', b'x' * 100)
READ, WRITE, SHARED, PRIVATE, FIXED = 1, 2, 1, 2, 0x10
rw, ro = os.open('f', os.O_RDWR), os.open('f', os.O_RDONLY)

def access(at, n, store=False):
    pid = os.fork()
    if pid == 0:
        ctypes.memset(at + n, 1, 1) if store else ctypes.string_at(at + n, 1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def far(fd, at, protection=READ | WRITE, kind=SHARED, address=None, len=16384):
    place = c('mmap', address, len, protection, kind, fd, at)
    found = [address in (None, place), access(place, 0), access(place, len - 1), access(place, len - 2, True)]
    return found + [c('msync', place, len, 4), c('munmap', place, len)]

for at in (1 << 45, 1 << 50, (1 << 63) - 16384 - 4096):
    show('shared', far, rw, at)
    show('private', far, rw, at, READ | WRITE, PRIVATE)
    show('validated', far, rw, at, READ, 3)
    show('read only', far, ro, at, READ)
    show('no right', far, ro, at)
    show('populated', far, rw, at, READ, SHARED | 0x8000)
show('past all', far, rw, (1 << 63) - 16384)
show('unaligned', far, rw, (1 << 50) + 5)
show('nothing', far, rw, 1 << 50, READ, SHARED, None, 0)
place = c('mmap', None, 16384, READ, SHARED, ro, 1 << 50)
show('no right later', c, 'mprotect', place, 4096, READ | WRITE, result=ctypes.c_int)
near = c('mmap', None, 16384, READ | WRITE, SHARED, rw, 0)
ctypes.memset(near, 7, 3)
show('over another one', far, rw, 1 << 50, READ | WRITE, SHARED | FIXED, near, 4096)
show('content', get, 'f')
