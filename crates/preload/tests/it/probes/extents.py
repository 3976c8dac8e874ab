FIEMAP, MOVE = 0xc020660b, 0xc028660f

def fiemap(fd, start=0, length=2**64 - 1, flags=0, count=50):
    """What is mapped and how, without the places; neighbours of one kind as one."""
    b = bytearray(struct.pack('=QQIIII', start, length, flags, 0, count, 0) + bytes(56 * count))
    try:
        fcntl.ioctl(fd, FIEMAP, b)
    except OSError as e:
        return errno.errorcode[e.errno], struct.unpack_from('=I', b, 16)[0]
    mapped = struct.unpack_from('=I', b, 20)[0]
    found = []
    for n in range(min(mapped, count)):
        logical, _, size, _, _, kind = struct.unpack_from('=QQQQQI', b, 32 + 56 * n)
        if found and found[-1][2] == kind & ~1 and found[-1][0] + found[-1][1] == logical:
            found[-1] = (found[-1][0], found[-1][1] + size, kind)
        else:
            found.append((logical, size, kind))
    return found if count else mapped

def move(orig, donor, orig_start, donor_start, length):
    b = bytearray(struct.pack('=IIQQQQ', 0, donor & 0xffffffff, orig_start, donor_start, length, 0))
    try:
        fcntl.ioctl(orig, MOVE, b)
        return struct.unpack_from('=Q', b, 32)[0]
    except OSError as e:
        return errno.errorcode[e.errno]

def make(name, parts, size=0):
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
    for kind, at, n in parts:
        if kind == 'w': os.pwrite(fd, bytes([at + 1]) * (4096 * n), 4096 * at)
        else: c('fallocate', fd, 0, 4096 * at, 4096 * n, result=ctypes.c_int)
    if size: os.ftruncate(fd, size)
    os.fsync(fd)
    return fd

a = make('a', [('w', 0, 2), ('w', 5, 3), ('u', 10, 4)], 82020)
print('all', fiemap(a), fiemap(a, count=0), fiemap(a, flags=5))
for start, length in [(0, 1), (8191, 1), (8192, 4096), (8192, 20000), (24576, 100), (82020, 10), (0, 0), (2**45, 1), (2**63, 1)]:
    print(start, length, fiemap(a, start, length))
for flags in [2, 8, 0x10, 0x80000000, 0x18]: print('flags', flags, fiemap(a, flags=flags))
print('too many', show('', lambda: fcntl.ioctl(a, FIEMAP, bytes(struct.pack('=QQIIII', 0, 1, 0, 0, 2**32 - 1, 0) + bytes(56)))))
d = os.open('dirty', os.O_RDWR | os.O_CREAT, 0o644); os.pwrite(d, b'x' * 9000, 8192); print('dirty', fiemap(d), fiemap(d, flags=1))
os.mkdir('dir'); e = os.open('dir', os.O_RDONLY); print('directory', len(fiemap(e)))
p = os.open('a', os.O_PATH); print('path', fiemap(p))
w = os.open('a', os.O_WRONLY); print('write only', fiemap(w))

o, d = make('o', [('w', n, 1) for n in range(8)]), make('d', [('u', 0, 8)])
print('move', move(o, d, 2, 2, 3), fiemap(o), fiemap(d))
os.fsync(o)
print('content', [x for x in get('o')[::4096]])
print('rest', move(o, d, 0, 0, 100), move(o, d, 8, 8, 1), move(o, d, 2**40, 0, 1))
print('content', [x for x in get('o')[::4096]])
print('donors', move(o, o, 0, 0, 1), move(o, 999, 0, 0, 1), move(o, -1, 0, 0, 1), move(o, e, 0, 0, 1), move(e, o, 0, 0, 1))
out = os.open('/etc/passwd', os.O_RDONLY); print('elsewhere', move(o, out, 0, 0, 1))
print('ways', move(w, d, 0, 0, 1), move(os.open('o', os.O_RDONLY), d, 0, 0, 1), move(o, os.open('d', os.O_RDONLY), 0, 0, 1))
print('done', move(o, os.open('d', os.O_WRONLY), 0, 0, 8), [x for x in get('o')[::4096]])
