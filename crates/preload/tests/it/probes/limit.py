# RLIMIT_FSIZE: what a file may grow to, and SIGXFSZ.
import resource, signal
FSIZE, INFINITY = resource.RLIMIT_FSIZE, resource.RLIM_INFINITY
caught = []
signal.signal(signal.SIGXFSZ, lambda number, frame: caught.append(number))

def limited(label, f, *args):
    """The call, its signals and the file's size after it."""
    show(label, f, *args)
    print(' ', len(caught), [os.stat(name).st_size for name in sorted(os.listdir('.')) if os.path.isfile(name)])
    caught.clear()

hard = resource.getrlimit(FSIZE)[1]
fd = os.open('a', os.O_CREAT | os.O_RDWR)
os.write(fd, b'a' * 200000)
resource.setrlimit(FSIZE, (50000, hard))
show('limit', resource.getrlimit, FSIZE)
show('kept', resource.prlimit, 0, FSIZE)
show('of this process', resource.prlimit, os.getpid(), FSIZE)
limited('past it, inside of the file', os.pwrite, fd, b'x', 100000)
limited('over it, inside of the file', os.pwrite, fd, b'x' * 5000, 48000)
limited('cut, longer than it', os.ftruncate, fd, 190000)
limited('same size', os.ftruncate, fd, 190000)
limited('longer', os.ftruncate, fd, 190001)
limited('shorter', os.ftruncate, fd, 100)
for name, flags in (('b', 0), ('c', os.O_APPEND)):
    fd = os.open(name, os.O_CREAT | os.O_RDWR | flags)
    limited('below', os.write, fd, b'b' * 49000)
    limited('over it', os.writev, fd, [b'c' * 600, b'd' * 600])
    limited('at it', os.write, fd, b'e')
    limited('nothing', os.write, fd, b'')
    limited('position', os.lseek, fd, 0, os.SEEK_CUR)
    limited('inside', os.pwrite, fd, b'f', 3)
    limited('at a place', os.pwritev, fd, [b'g' * 100], 49950)
    limited('allocate', os.posix_fallocate, fd, 0, 50000)
    limited('allocate too much', os.posix_fallocate, fd, 49000, 1001)
    limited('keeping the size', lambda: c('fallocate', fd, 1, 40000, 100000))
    limited('allocate', lambda: c('fallocate', fd, 0, 40000, 100000))
    limited('zero', lambda: c('fallocate', fd, 0x10, 40000, 100000))
    limited('past all files', lambda: c('fallocate', fd, 0, 1 << 62, 100000))
    limited('truncate', os.truncate, name, 50001)
    limited('truncate', os.truncate, name, 50000)
    limited('insert', lambda: c('fallocate', fd, 0x20, 0, 8192))
    limited('shorter', os.truncate, name, 40000)
put('from', b'h' * 40000)
f = os.open('from', os.O_RDONLY)
fd = os.open('d', os.O_CREAT | os.O_RDWR)
limited('copy', os.copy_file_range, f, fd, 40000, 0, 30000)
limited('copy at it', os.copy_file_range, f, fd, 40000, 0, 50000)
limited('copy nothing at it', os.copy_file_range, f, fd, 0, 0, 50000)
os.ftruncate(fd, 0)
os.lseek(fd, 20000, 0)
limited('sendfile', os.sendfile, fd, f, 0, 20000)
limited('stream', lambda: [open('e', 'wb', 0).write(b'i' * 60000)])
# The signal's handler writes.
limited('handler', lambda: signal.signal(signal.SIGXFSZ, lambda n, frame: put('h', b'handled')) and 1)
limited('signal', os.pwrite, fd, b'x', 50000)
show('h', get, 'h')
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limited('ignored', os.pwrite, fd, b'x', 50000)
# A mapping knows no limit.
import mmap
fd = os.open('a', os.O_RDWR)
resource.setrlimit(FSIZE, (INFINITY, hard))
os.ftruncate(fd, 100000)
resource.setrlimit(FSIZE, (50000, hard))
view = mmap.mmap(fd, 100000)
view[90000:90005] = b'store'
view.flush()
show('stored', os.pread, fd, 6, 90000)
os.fsync(fd)
# Other forms of the same.
limit = (ctypes.c_uint64 * 2)()
show('ulimit', c, 'ulimit', 1)
show('ulimit', c, 'ulimit', 2, 100)
show('limit', resource.getrlimit, FSIZE)
if os.uname().machine == 'x86_64':
    show('by number', c, 'syscall', 97, 1, limit)
    show('which', lambda: list(limit))
    limit[0] = 60000; limit[1] = 70000
    show('by number', c, 'syscall', 302, 0, 1, limit, None)
    limit[0] = 70001
    show('wrong', c, 'syscall', 160, 1, limit)
show('limit', resource.getrlimit, FSIZE)
show('raised again', resource.setrlimit, FSIZE, (80000, 90000))
limited('below', os.pwrite, os.open('new', os.O_CREAT | os.O_WRONLY), b'x' * 10, 79995)
show('nothing', c, 'prlimit', 0, 1, None, None, result=ctypes.c_int)
show('nowhere', c, 'getrlimit', 1, None, result=ctypes.c_int)
show('wrong', c, 'setrlimit', 1, None, result=ctypes.c_int)
# What is started has the limit, and a file outside of the image goes by it there.
def started(f):
    r, w = os.pipe()
    f(w)
    os.close(w)
    text = b''
    while piece := os.read(r, 4096): text += piece
    return [line for line in text.decode().split('\n') if line.startswith('Max file size')]
cat = ['cat', '/proc/self/limits']
show('posix_spawn', started, lambda w: os.waitpid(os.posix_spawn('/bin/cat', cat, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, w, 1)]), 0))
def fork(w):
    if os.fork() == 0:
        os.dup2(w, 1)
        os.execv('/bin/cat', cat)
    os.wait()
show('fork', started, fork)
# A failed exec and the end of all leave the image whole.
show('failed exec', os.execv, '/nowhere', ['x'])
limited('below', os.pwrite, os.open('new', os.O_CREAT | os.O_WRONLY), b'y' * 10, 79993)
os.sync()
os.execv('/bin/sh', ['sh', '-c', 'grep "Max file size" /proc/self/limits'])
