//! How a process ends, and what is then in the image.

use extant_testkit::{env, need, oracle};

use crate::support::{Image, python, said};

/// Runs a Python text in the image; gives what it said.
fn run(image: &Image, python: &str, text: &str) -> String {
    said(&oracle::output(image.command(python).args(["-c", text])).expect("python"))
}

fn interpreter() -> Option<String> {
    let found = python();
    if found.is_none() {
        println!("skipped: no python3 on this machine");
    }
    found
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
