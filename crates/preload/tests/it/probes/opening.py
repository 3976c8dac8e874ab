def opened(*args, **kwargs):
    fd = os.open(*args, **kwargs)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    os.close(fd)
    return oct(flags), fd >= 0

put('f', b'0123456789')
os.mkdir('d')
put('d/g', b'g')
os.symlink('f', 'l')
os.symlink('nowhere', 'dangling')
os.symlink('d', 'ld')
os.symlink('loop', 'loop')
os.mkfifo('fifo')
for path in ['f', 'd', 'l', 'dangling', 'ld', 'loop', 'none', 'f/', 'd/', 'd/.', 'd/..', '.', 'f/x', 'd/g', 'ld/g', 'none/x', '',
        'x' * 255, 'x' * 256, T, T + '/', T + '/f', T + '//d///g', T + '/./d/../f', 'd/../../' + os.path.basename(T) + '/f']:
    for name, flags in dict(r=os.O_RDONLY, w=os.O_WRONLY, rw=os.O_RDWR, c=os.O_CREAT | os.O_RDWR, x=os.O_CREAT | os.O_EXCL | os.O_WRONLY,
            dir=os.O_DIRECTORY, nofollow=os.O_NOFOLLOW, path=os.O_PATH, pathnf=os.O_PATH | os.O_NOFOLLOW,
            cd=os.O_CREAT | os.O_DIRECTORY, a=os.O_APPEND | os.O_WRONLY, sync=os.O_SYNC | os.O_RDWR, direct=os.O_DIRECT | os.O_RDONLY,
            na=os.O_NOATIME).items():
        label = path if len(path) < 30 else len(path)
        if T in path: label = 'T' + path[len(T):]
        if 'preload' in str(label) or '/d/../../' in path or path.startswith('d/../../'): label = 'out and in'
        show(f'open {label} {name}', opened, path, flags, 0o640)
        for made in ['none', 'nowhere', 'x' * 255]:
            if os.path.lexists(made): os.unlink(made)
put('t', b'0123456789')
show('trunc', opened, 't', os.O_RDWR | os.O_TRUNC)
show('size', lambda: os.stat('t').st_size)
put('t', b'0123456789')
show('trunc excl', opened, 't', os.O_RDWR | os.O_TRUNC | os.O_CREAT | os.O_EXCL)
show('size', lambda: os.stat('t').st_size)
for mask in [0, 0o22, 0o777]:
    os.umask(mask)
    os.close(os.open('m%o' % mask, os.O_CREAT | os.O_WRONLY, 0o7777))
    print(oct(os.stat('m%o' % mask).st_mode))
os.umask(0o22)
dirfd = os.open('d', os.O_RDONLY)
show('openat', opened, 'g', os.O_RDONLY, dir_fd=dirfd)
show('openat ..', opened, '../f', os.O_RDONLY, dir_fd=dirfd)
show('openat make', opened, 'made', os.O_CREAT | os.O_RDWR, 0o600, dir_fd=dirfd)
show('openat out', lambda: os.close(os.open('/etc/passwd', os.O_RDONLY, dir_fd=dirfd)))
ffd = os.open('f', os.O_RDONLY)
show('openat of a file', opened, 'g', os.O_RDONLY, dir_fd=ffd)
show('openat closed', opened, 'g', os.O_RDONLY, dir_fd=999)
again = os.open('/proc/self/fd/%d' % ffd, os.O_RDWR)
show('reopened', os.write, again, b'xx')
show('of it', os.pread, ffd, 4, 0)
show('dev fd', lambda: get('/dev/fd/%d' % ffd))
pfd = os.open('f', os.O_PATH)
for label, f in dict(read=lambda: os.read(pfd, 1), write=lambda: os.write(pfd, b'x'), sync=lambda: os.fsync(pfd), chmod=lambda: os.fchmod(pfd, 0o600),
        stat=lambda: os.fstat(pfd).st_size, seek=lambda: os.lseek(pfd, 0, 0), dup=lambda: os.close(os.dup(pfd)),
        xattr=lambda: os.getxattr(pfd, 'user.a'), lock=lambda: fcntl.flock(pfd, fcntl.LOCK_SH)).items():
    show('path only ' + label, f)
tmp = os.open('d', os.O_TMPFILE | os.O_RDWR, 0o644)
os.write(tmp, b'temporary')
show('nlink', lambda: os.fstat(tmp).st_nlink)
show('listed', lambda: sorted(os.listdir('d')))
show('linked', os.link, '/proc/self/fd/%d' % tmp, 'd/named', follow_symlinks=True)
show('content', get, 'd/named')
show('nlink', lambda: os.fstat(tmp).st_nlink)
show('mkstemp', lambda: oct(__import__('tempfile').mkstemp(dir='.')[0] > 0))
template = ctypes.create_string_buffer(b'd/tmp-XXXXXX.c')
fd = c('mkstemps', template, 2, result=ctypes.c_int)
print(template.value[:6], template.value[-2:], oct(os.fstat(fd).st_mode), b'XXXXXX' in template.value)
os.unlink(template.value)
template = ctypes.create_string_buffer(b'd/dir-XXXXXX')
c('mkdtemp', template, result=ctypes.c_void_p)
print(oct(os.stat(template.value).st_mode))
os.rmdir(template.value)
show('bad template', c, 'mkstemp', ctypes.create_string_buffer(b'd/tmp'), result=ctypes.c_int)
for left in os.listdir('.'):
    if left.startswith('tmp'): os.unlink(left)
