import zlib
# Every mode of fallocate(2) but WRITE_ZEROES, which is the device's affair, on ranges with all kinds of edges.
MODES = [0, 1, 2, 3, 8, 9, 0x10, 0x11, 0x20, 0x21, 0x40, 0x41, 0x81, 0x18, 0x30]
RANGES = [(0, 4096), (4096, 4096), (1024, 2048), (1000, 3000), (8192, 40960), (0, 16384), (16000, 5000), (20480, 1024),
    (0, 0), (2**62, 2**62), (2**44, 4096), (2**40, 2**40)]

for mode in MODES:
    for at, size in RANGES:
        if mode in (0, 1, 0x10, 0x11) and size > 2**30:
            continue
        name = f'r{mode}-{at}-{size}'
        fd = os.open(name, os.O_CREAT | os.O_RDWR, 0o644)
        os.pwrite(fd, bytes(range(256)) * 70, 0)
        os.fsync(fd)
        os.pwrite(fd, b'tail' * 300, 18000)
        show(f'{mode} {at}+{size}', c, 'fallocate', fd, mode, at, size, result=ctypes.c_int)
        os.fsync(fd)
        show('size', lambda: (os.fstat(fd).st_size, os.fstat(fd).st_blocks))
        show('content', lambda: zlib.crc32(os.pread(fd, 60000, 0)))
        os.close(fd)

put('reader', b'0123456789' * 1000)
reader = os.open('reader', os.O_RDONLY)
there = os.open('.', os.O_RDONLY)
appender = os.open('reader', os.O_WRONLY | os.O_APPEND)
for mode in MODES + [0x80]:
    show(f'reader {mode}', c, 'fallocate', reader, mode, 0, 1024, result=ctypes.c_int)
    show(f'directory {mode}', c, 'fallocate', there, mode, 0, 1024, result=ctypes.c_int)
    show(f'nothing {mode}', c, 'fallocate', 77, mode, 0, 1024, result=ctypes.c_int)
    if mode != 0x80:
        show(f'appender {mode}', c, 'fallocate', appender, mode, 1024, 1024, result=ctypes.c_int)
    show('size', lambda: os.stat('reader').st_size)
