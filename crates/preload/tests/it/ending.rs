//! How a process ends, and what is then in the image.

use extant_testkit::{env, need, oracle, scratch};

use crate::support::{Image, interpreter, said};

/// Runs a Python text in the image; gives what it said.
fn run(image: &Image, python: &str, text: &str) -> String {
    said(&oracle::output(image.command(python).args(["-c", text])).expect("python"))
}

/// Each way to end leaves a clean image with what was written.
#[test]
fn every_orderly_end_leaves_a_clean_image() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let Some(python) = interpreter() else { return };
    let ends = [
        "pass",
        "sys.exit(3)",
        "os._exit(0)",
        "ctypes.CDLL(None)._Exit(0)",
        "ctypes.CDLL(None).quick_exit(0)",
        "os.abort()",
        "os.execv('/bin/true', ['true'])",
        "os.execvp('true', ['true'])",
        "os.execve('/bin/true', ['true'], {})",
        "os.fork() == 0 and os._exit(0); os.wait()",
    ];
    for end in ends {
        let image = Image::new("-t ext4 -b 1024");
        let text = format!(
            "import os, sys, ctypes\nT = os.environ['T']\nfd = os.open(T + '/f', os.O_CREAT | os.O_RDWR)\n\
             os.write(fd, b'open to the end')\nopen(T + '/h', 'w').write('kept')\n{end}\n"
        );
        let text = run(&image, &python, &text);
        image.assert_clean();
        assert_eq!(oracle::debugfs_cat(&image.path, "/h"), b"kept", "after {end}: {text}");
        assert!(!text.contains("extant_preload:"), "after {end}: {text}");
    }
}

/// An unlinked file that is still open goes with its process.
#[test]
fn an_unlinked_open_file_is_freed_at_exit() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let Some(python) = interpreter() else { return };
    let image = Image::new("-t ext4 -b 1024");
    let text = "
import os
fd = os.open(os.environ['T'] + '/f', os.O_CREAT | os.O_RDWR)
os.write(fd, b'x' * 100000); os.fsync(fd)
os.unlink(os.environ['T'] + '/f')
os.write(fd, b'x' * 100000)
";
    let text = run(&image, &python, text);
    assert!(!text.contains("extant_preload:"), "{text}");
    image.assert_clean();
}

/// A thread that stores to a mapping while the process ends neither ends it otherwise, nor stores what is lost unseen: it waits.
#[test]
fn a_thread_that_stores_does_not_decide_how_it_ends() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    need!(std::fs::File::open("/dev/userfaultfd").map(drop).map_err(|e| format!("/dev/userfaultfd: {e}")));
    let Some(python) = interpreter() else { return };
    let text = "
import ctypes, mmap, os, threading
SIZE = 32 << 20
name = os.environ['T'] + '/f'
fd = os.open(name, os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, SIZE)
view = memoryview(mmap.mmap(fd, SIZE))
if os.environ['GONE'] == '1': os.unlink(name)
start = ctypes.addressof(ctypes.c_char.from_buffer(view))
def fill():
    while True:
        ctypes.memset(start, 7, SIZE)
threading.Thread(target=fill, daemon=True).start()
while view[100 * 4096] == 0:
    pass
os._exit(42)
";
    // Pages of the cache, and blocks that a store places itself; a file that is freed at the end, and one that stays.
    for (options, gone) in [("", "0"), ("", "1"), ("dax=always", "0"), ("dax=always", "1")] {
        let image = Image::new("-t ext4 -b 4096");
        let mut command = image.command(&python);
        command.env("EXTANT_OPTIONS", options).env("GONE", gone);
        let said = said(&oracle::output(command.args(["-c", text])).expect("python"));
        assert!(said.contains("exit status: 42"), "{options}, {gone}: {said}");
        assert!(!said.contains("extant_preload:"), "{options}, {gone}: {said}");
        image.assert_clean();
    }
}

/// What accesses a mapping after the unmount, in the thread that ends the process: a destructor of a library that was loaded before ours. Beside
/// it another thread may store. It loads, or stores, where `argument` says, and says so.
const LATE: &str = r#"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static volatile unsigned char *where;
static int stores;
void late(unsigned char *at, int store) { where = at; stores = store; }
static void *fill(void *at) { for (;;) memset(at, 7, 64 << 20); }
void beside(unsigned char *at) {
    pthread_t thread;
    if (pthread_create(&thread, 0, fill, at)) abort();
    while (*(volatile unsigned char *)(at + (1 << 20)) != 7);
}
__attribute__((destructor)) static void end(void) {
    if (!where) return;
    if (stores) { *where = 9; write(1, "stored\n", 7); }
    else { write(1, *where == 5 ? "five\n" : "other\n", *where == 5 ? 5 : 6); }
}
"#;

/// A destructor that accesses a mapping after the unmount sees what is in memory, and else gets SIGBUS, where it would wait for itself. Another
/// thread that stores beside the end changes nothing of that.
#[test]
fn a_destructor_after_the_unmount_is_answered() {
    need!(env::tools(&["mke2fs", "e2fsck", "cc"]));
    need!(std::fs::File::open("/dev/userfaultfd").map(drop).map_err(|e| format!("/dev/userfaultfd: {e}")));
    let Some(python) = interpreter() else { return };
    let dir = scratch();
    let (source, late) = (dir.join("late.c"), dir.join("late.so"));
    std::fs::write(&source, LATE).expect("a source");
    let mut cc = oracle::command("cc");
    cc.args(["-shared", "-fPIC", "-pthread", "-o"]).arg(&late).arg(&source);
    let built = oracle::output(&mut cc).expect("cc");
    assert!(built.status.success(), "{}", said(&built));
    let text = "
import ctypes, mmap, os
late = ctypes.CDLL(os.environ['LATE'])
fd = os.open(os.environ['T'] + '/f', os.O_CREAT | os.O_RDWR)
os.pwrite(fd, b'\\5' * 65536, 0)
os.ftruncate(fd, 64 << 20)
m = mmap.mmap(fd, 64 << 20)
at = ctypes.addressof(ctypes.c_char.from_buffer(m))
if os.environ['BESIDE'] == '1': late.beside(ctypes.c_void_p(at + (1 << 20)))
page = 2 if os.environ['WHERE'] == 'memory' else 200
late.late(ctypes.c_void_p(at + 4096 * page), int(os.environ['STORES']))
ctypes.CDLL(None).exit(42)
";
    let normal = |what: &str| format!("{what}exit status: 42");
    let signal = "signal: 7 (SIGBUS)".to_owned();
    // Page 2 is in memory since it was written, and was never seen in the mapping; of page 200 there is nothing.
    for (beside, place, stores, end) in [
        ("0", "memory", "0", normal("five\n")),
        ("1", "memory", "0", normal("five\n")),
        ("0", "memory", "1", signal.clone()),
        ("1", "memory", "1", signal.clone()),
        ("0", "absent", "0", signal),
    ] {
        let image = Image::new("-t ext4 -b 4096");
        let mut command = image.command(&python);
        let both = format!("{} {}", crate::support::library().display(), late.display());
        command.env("LD_PRELOAD", both).env("LATE", &late).env("BESIDE", beside).env("WHERE", place);
        command.env("STORES", stores);
        let said = said(&oracle::output(command.args(["-c", text])).expect("python"));
        assert!(said.contains(&end), "beside {beside}, {place}, stores {stores}: {said}");
        assert!(!said.contains("extant_preload:"), "beside {beside}, {place}, stores {stores}: {said}");
        image.assert_clean();
    }
}

/// The library's own descriptors are out of the program's way, and not the program's to close.
#[test]
fn closing_and_replacing_everything_spares_the_library() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let Some(python) = interpreter() else { return };
    let image = Image::new("-t ext4");
    let text = "
import os, mmap, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
T = os.environ['T']
fd = os.open(T + '/f', os.O_CREAT | os.O_RDWR)
os.write(fd, b'before' + b' ' * 4096)
m = mmap.mmap(fd, 4096)
null = os.open('/dev/null', os.O_RDWR)
refused = 0
for n in range(3, 1024):
    if n in (fd, null): continue
    try: os.dup2(null, n)
    except OSError: refused += 1
    try: os.close(n)
    except OSError: pass
os.closerange(null + 1, 1 << 20)
m[:7] = b'between'; m.flush()
os.pwrite(fd, b'after', 100)
print(0 < refused < 20)
";
    let text = run(&image, &python, text);
    assert!(text.starts_with("True\n"), "{text}");
    assert!(oracle::debugfs_cat(&image.path, "/f").starts_with(b"between"), "{text}");
    image.assert_clean();
}

/// A failed exec takes the freeze back.
#[test]
fn a_failed_exec_changes_nothing() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let Some(python) = interpreter() else { return };
    let image = Image::new("-t ext4");
    let text = "
import os
f = open(os.environ['T'] + '/f', 'w')
f.write('before '); f.flush()
try: os.execv('/nowhere', ['x'])
except OSError as e: print(e)
f.write('after'); f.close()
";
    let text = run(&image, &python, text);
    assert!(text.contains("No such file or directory"), "{text}");
    assert_eq!(oracle::debugfs_cat(&image.path, "/f"), b"before after");
    image.assert_clean();
}

/// Killed: what was made durable is there after a replay, which is all that the image asks for.
#[test]
fn a_killed_process_leaves_a_replay() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let Some(python) = interpreter() else { return };
    let image = Image::new("-t ext4");
    let text = "
import os, signal
fd = os.open(os.environ['T'] + '/f', os.O_CREAT | os.O_RDWR)
os.write(fd, b'durable'); os.fsync(fd)
os.kill(os.getpid(), signal.SIGKILL)
";
    run(&image, &python, text);
    let replayed = oracle::replay_journal(&image.path);
    assert!(replayed.status <= 1, "{replayed}");
    image.assert_clean();
    assert_eq!(oracle::debugfs_cat(&image.path, "/f"), b"durable");
}

/// A child that is forked while files are open gets a clean error, and its parent goes on.
#[test]
fn a_forked_child_is_refused_and_harms_nothing() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let Some(python) = interpreter() else { return };
    let image = Image::new("-t ext4");
    let text = "
import os, errno
T = os.environ['T']
fd = os.open(T + '/f', os.O_CREAT | os.O_RDWR)
os.write(fd, b'parent ')
pid = os.fork()
if pid == 0:
    def refused(f):
        try: f()
        except OSError as e: print(errno.errorcode[e.errno], flush=True)
        else: print('not refused', flush=True)
    refused(lambda: os.write(fd, b'child'))
    refused(lambda: os.read(fd, 3))
    refused(lambda: os.fstat(fd))
    refused(lambda: os.listdir(T))
    refused(lambda: os.mkdir(T + '/d'))
    refused(lambda: os.unlink(T + '/f'))
    os.close(fd)
    refused(lambda: os.read(fd, 3))
    open('/dev/null').read()
    os._exit(0)
os.wait()
os.write(fd, b'again')
";
    let text = run(&image, &python, text);
    assert!(text.starts_with(&("ENOTCONN\n".repeat(6) + "EBADF\n")), "{text}");
    assert_eq!(oracle::debugfs_cat(&image.path, "/f"), b"parent again");
    image.assert_clean();
}

/// A child that is forked while nothing is open has the image for itself, and then its parent again.
#[test]
fn an_idle_parent_lends_the_image_to_its_child() {
    need!(env::tools(&["mke2fs", "e2fsck", "debugfs"]));
    let Some(python) = interpreter() else { return };
    let image = Image::new("-t ext4");
    let text = "
import os
T = os.environ['T']
os.chdir(T)
os.mkdir('d')
os.chdir('d')
if os.fork() == 0:
    open('child', 'w').write(os.getcwd()[len(T):])
    os._exit(0)
os.wait()
print(open('child').read(), os.listdir('.'))
";
    let text = run(&image, &python, text);
    assert!(text.starts_with("/d ['child']\n"), "{text}");
    image.assert_clean();
}

/// What reaches a descriptor of ours without the library gets an error.
#[test]
fn a_placeholder_refuses_everything() {
    need!(env::tools(&["mke2fs", "e2fsck"]));
    let Some(python) = interpreter() else { return };
    let image = Image::new("-t ext4");
    let text = "
import os, ctypes, errno, select
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(os.environ['T'] + '/f', os.O_CREAT | os.O_RDWR)
os.write(fd, b'content')
buf = ctypes.create_string_buffer(16)
READ, WRITE, FSYNC, FTRUNCATE, MMAP, FALLOCATE = 0, 1, 74, 77, 9, 285
for name, args in dict(read=(READ, fd, buf, 16), write=(WRITE, fd, b'x', 1), fsync=(FSYNC, fd), ftruncate=(FTRUNCATE, fd, 0),
        mmap=(MMAP, None, 4096, 1, 1, fd, 0), fallocate=(FALLOCATE, fd, 0, 0, 10)).items():
    done = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    print(name, done, errno.errorcode[ctypes.get_errno()])
p = select.poll(); p.register(fd); print(p.poll(0) == [(fd, select.POLLIN | select.POLLOUT)])
print(os.pread(fd, 100, 0))
";
    let text = run(&image, &python, text);
    let expected = "read -1 EBADF\nwrite -1 EBADF\nfsync -1 EINVAL\nftruncate -1 EINVAL\nmmap -1 EACCES\nfallocate -1 EBADF\n\
        True\nb'content'\n";
    assert!(text.starts_with(expected), "{text}");
    image.assert_clean();
}
