import ctypes.util
try: aio = ctypes.CDLL('libaio.so.1', use_errno=True)
except OSError: aio = None
class Iocb(ctypes.Structure):
    _fields_ = [('data', ctypes.c_uint64), ('key', ctypes.c_uint32), ('rw_flags', ctypes.c_int), ('opcode', ctypes.c_uint16), ('reqprio', ctypes.c_int16),
        ('fd', ctypes.c_uint32), ('buf', ctypes.c_uint64), ('nbytes', ctypes.c_uint64), ('offset', ctypes.c_int64), ('reserved', ctypes.c_uint64), ('flags', ctypes.c_uint32), ('resfd', ctypes.c_uint32)]
class Event(ctypes.Structure):
    _fields_ = [('data', ctypes.c_uint64), ('obj', ctypes.c_uint64), ('res', ctypes.c_int64), ('res2', ctypes.c_int64)]
buf = ctypes.create_string_buffer(8192)
def request(op, fd, data, n=0, at=0, what=None, resfd=None):
    if what is not None: ctypes.memmove(buf, what, len(what))
    return Iocb(data=data, opcode=op, fd=fd, buf=ctypes.addressof(buf), nbytes=n, offset=at, flags=1 if resfd else 0, resfd=resfd or 0)
SETUP, DESTROY, GETEVENTS, SUBMIT = 206, 207, 208, 209
context = ctypes.c_void_p()
show('setup', c, 'syscall', SETUP, 8, ctypes.byref(context))
fd = os.open('f', os.O_CREAT | os.O_RDWR, 0o644); hfd = os.open('/tmp', os.O_TMPFILE | os.O_RDWR, 0o600)
def submit(*requests):
    list = (ctypes.POINTER(Iocb) * len(requests))(*[ctypes.pointer(r) for r in requests])
    return c('syscall', SUBMIT, context, len(requests), list)
def events(least, most):
    room = (Event * max(most, 1))(); timeout = struct.pack('qq', 2 if least else 0, 0)
    n = c('syscall', GETEVENTS, context, least, most, room, timeout)
    return sorted((e.data, e.res) for e in room[:n])
def sync(op, data): r = request(op, fd, data); r.buf = 0; return r
show('sync with a buffer', submit, request(2, fd, 7))
show('write', submit, request(1, fd, 1, 7, 5, b'written')); show('done', events, 1, 4); show('none', events, 0, 4)
show('read', submit, request(0, fd, 2, 100, 0)); show('done', events, 1, 4); print(buf.raw[:12])
show('two', submit, request(1, fd, 3, 4, 0, b'ours'), request(0, fd, 4, 4, 4)); show('one', lambda: len(events(1, 1))); show('other', lambda: len(events(1, 1)))
show('mixed', submit, request(1, hfd, 5, 4, 0), request(1, fd, 6, 4, 20)); show('both', events, 2, 4)
show('sync', submit, sync(2, 7), sync(3, 8)); show('done', events, 2, 4)
show('bad op', submit, request(99, fd, 9)); show('closed', submit, request(0, 999, 9)); show('second bad', submit, request(0, fd, 10, 4), request(0, 999, 9)); show('done', events, 1, 4)
efd = os.eventfd(0) if hasattr(os, 'eventfd') else None
if efd: show('eventfd', submit, request(0, fd, 11, 4, 0, None, efd)); show('rung', os.eventfd_read, efd); show('done', events, 1, 4)
iov = (ctypes.c_uint64 * 4)(ctypes.addressof(buf), 3, ctypes.addressof(buf) + 100, 5)
v = request(7, fd, 12, 2, 0); v.buf = ctypes.addressof(iov); show('vector', submit, v); show('done', events, 1, 4); print(buf.raw[:3], buf.raw[100:105])
show('reader', lambda: submit(request(1, os.open('f', os.O_RDONLY), 13, 4)))
show('destroy', c, 'syscall', DESTROY, context); show('content', get, 'f')
if aio:
    context = ctypes.c_void_p()
    print(aio.io_queue_init(4, ctypes.byref(context)))
    r = request(0, fd, 14, 4, 0); list = (ctypes.POINTER(Iocb) * 1)(ctypes.pointer(r)); room = (Event * 2)()
    print(aio.io_submit(context, ctypes.c_long(1), list), aio.io_getevents(context, ctypes.c_long(1), ctypes.c_long(2), room, None), room[0].data, room[0].res)
    r.fd = 999; print(aio.io_submit(context, ctypes.c_long(1), list), aio.io_destroy(context))
