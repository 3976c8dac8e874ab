P = ctypes.c_void_p
for name in ['fopen', 'fdopen', 'freopen']: getattr(libc, name).restype = P
for name in ['ftell', 'fread', 'fwrite', 'getline']: getattr(libc, name).restype = ctypes.c_long
def fopen(path, mode):
    ctypes.set_errno(0)
    f = libc.fopen(path, mode)
    if not f: raise OSError(ctypes.get_errno(), 'fopen')
    return P(f)
f = fopen(b'f', b'w')
print(libc.fputs(b'line one\nline two\n', f) >= 0, libc.fprintf(f, b'%d %s\n', 42, b'text'), libc.ftell(f), libc.fileno(f) > 2)
print(os.fstat(libc.fileno(f)).st_size, libc.fflush(f), os.fstat(libc.fileno(f)).st_size, libc.fclose(f))
show('content', get, 'f')
buf = ctypes.create_string_buffer(100)
f = fopen(b'f', b'r')
libc.fgets.restype = P
print(bool(libc.fgets(buf, 100, f)), buf.value, libc.ftell(f), libc.fseek(f, ctypes.c_long(-3), 2), libc.fread(buf, 1, 100, f), buf.raw[:3], bool(libc.feof(f)))
libc.rewind(f); print(libc.fgetc(f), libc.ungetc(65, f), libc.fgetc(f), libc.fputs(b'x', f) < 0, bool(libc.ferror(f)), libc.fclose(f))
f = fopen(b'f', b'a+'); print(libc.fputs(b'more\n', f) >= 0, libc.fseek(f, ctypes.c_long(0), 0), bool(libc.fgets(buf, 100, f)), buf.value, libc.fclose(f))
f = fopen(b'f', b'r+'); print(libc.fputs(b'LINE', f) >= 0, libc.fseek(f, ctypes.c_long(5), 0), bool(libc.fgets(buf, 100, f)), buf.value, libc.fclose(f))
show('content', get, 'f')
for mode in [b'r', b'r+', b'w', b'wx', b'ax', b'q', b'', b'rb', b'we', b'w+']:
    for path in [b'none', b'f', b'.', b'none/x']:
        def once():
            f = fopen(path, mode)
            cloexec = fcntl.fcntl(libc.fileno(f), fcntl.F_GETFD)
            libc.fclose(f)
            return cloexec
        show(f'{mode} {path}', once)
        if os.path.exists('none'): os.unlink('none')
fd = os.open('g', os.O_CREAT | os.O_RDWR, 0o644)
f = P(libc.fdopen(fd, b'w')); print(libc.fileno(f) == fd, libc.fputs(b'by fd', f) >= 0, libc.fclose(f)); show('closed', os.read, fd, 1); show('content', get, 'g')
f = fopen(b'big', b'w')
chunk = bytes(range(256)) * 300
print(libc.fwrite(chunk, 1, len(chunk), f), libc.fwrite(chunk, 1, len(chunk), f), libc.fclose(f)); show('content', get, 'big')
f = fopen(b'lines', b'w'); libc.setvbuf(f, None, 1, 0)
for i in range(500): libc.fprintf(f, b'line %d\n', i)
libc.fclose(f); f = fopen(b'lines', b'r'); line, size, total = ctypes.c_char_p(), ctypes.c_size_t(), 0
while (n := libc.getline(ctypes.byref(line), ctypes.byref(size), f)) > 0: total += n
print(total, libc.fclose(f))
sys.stdout.flush()
kept = os.dup(1)
out = os.open('out', os.O_CREAT | os.O_WRONLY, 0o644); os.dup2(out, 1)
libc.printf(b'printed %d\n', 7); libc.puts(b'put'); libc.fflush(None); os.write(1, b'written\n')
os.dup2(kept, 1); show('redirected', get, 'out'); libc.puts(b'back'); libc.fflush(None)
stdout = P.in_dll(libc, 'stdout')
print(bool(libc.freopen(b'again', b'w', P(stdout.value)))); sys.stdout.flush()
libc.printf(b'reopened\n'); libc.fflush(None)
os.dup2(kept, 1); show('reopened', get, 'again')
f = fopen(b'left', b'w'); libc.fputs(b'unflushed at exit', f)
