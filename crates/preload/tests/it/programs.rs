//! System programs that know nothing of the library.

use extant_testkit::{env, need, oracle};

use crate::support::{Image, ROOT, compare, python, said};

/// Runs a script with `sh` in the image and on a kernel mount: it must succeed and say the same.
#[track_caller]
fn script(mkfs: &str, text: &str) {
    let checked = format!("set -e; cd \"$T\"; umask 027; {text}; echo done");
    compare(mkfs, "sh", &["-c", &checked]);
}

const MKFS: [&str; 3] = ["-t ext4 -b 4096", "-t ext4 -b 1024 -O inline_data", "-t ext3 -b 2048"];

#[test]
fn files_are_copied_listed_and_compared() {
    need!(env::kernel_mounts(), env::tools(&["cp", "cmp", "ls", "cat", "dd", "truncate", "stat"]));
    for mkfs in MKFS {
        script(
            mkfs,
            "mkdir -p a/b/c; cp /etc/services a/s 2>/dev/null || cp /etc/passwd a/s; cp a/s a/b/t; cmp a/s a/b/t; \
             cp a/s a/both; dd if=a/b/t of=a/both oflag=append conv=notrunc status=none; cat a/both; ls -R; ls -l a | wc -l; \
             dd if=a/both of=a/part bs=777 skip=3 count=5 status=none; \
             dd if=a/s of=a/part bs=100 seek=50 conv=notrunc status=none; cksum a/part; truncate -s 100000 a/s; \
             truncate -s 7 a/b/t; cat a/b/t; stat -c '%n %s %a %h %F' a a/s a/b/t; cp --sparse=always a/s a/sparse; cmp a/s a/sparse; \
             cp -a a z; diff -r a z; cp -l a/s z/hard; stat -c '%h' a/s",
        );
    }
}

#[test]
fn names_come_go_and_move() {
    need!(env::kernel_mounts(), env::tools(&["mv", "ln", "rm", "mkdir", "rmdir", "chmod", "chown", "touch"]));
    for mkfs in MKFS {
        script(
            mkfs,
            "mkdir d e; echo 1 >d/f; mv d/f e/g; ln e/g d/h; ln -s ../e/g d/l; cat d/l; readlink d/l; test d/h -ef e/g; \
             mv d/h d/i; rm e/g; cat d/i; ! cat d/l 2>/dev/null; ! rmdir d 2>/dev/null; rm -r d; ls; mkfifo fifo; chmod 4711 fifo; \
             touch -d @1000000000 e; stat -c '%a %F' fifo e; stat -c %Y e; chown 12:34 fifo; stat -c '%u:%g %a' fifo; \
             mkdir -p x/y/z; mv x e/; find . | sort; ln -s \"$T\"/e/x abs; ls abs; cd abs/y; ls ..; test -d ../../x; cd \"$T\"; \
             ln -s /etc/passwd out; cmp out /etc/passwd; rm abs out; i=0; while [ $i -lt 300 ]; do : >e/name-$i; i=$((i+1)); done; \
             ls e | wc -l; rm e/name-1*; ls e | cksum",
        );
    }
}

#[test]
fn archives_are_made_and_unpacked() {
    need!(env::kernel_mounts(), env::tools(&["tar", "find", "grep", "sort", "sed"]));
    for mkfs in MKFS {
        script(
            mkfs,
            "mkdir -p t/u; for i in 1 2 3 4 5 6 7; do echo line $i >>t/u/file; cp t/u/file t/copy-$i; done; ln -s u/file t/link; \
             tar -cf t.tar t; tar -tf t.tar | sort; mkdir v; tar -xf t.tar -C v; diff -r t v/t; grep -r 'line 5' v | sort; \
             grep -c line t/u/file; find v -type f -name 'copy-*' -size -1k | sort; sed -i 's/line/row/' t/u/file; cat t/u/file; \
             sort -r t/u/file -o t/u/file; cat t/u/file; tar -rf t.tar t/u; tar -tf t.tar | wc -l; find t -delete; rm t.tar; ls",
        );
    }
}

#[test]
fn the_shell_reads_and_writes_by_itself() {
    need!(env::kernel_mounts());
    script(
        MKFS[0],
        "echo one >f; echo two >>f; while read -r line; do echo \"got $line\"; done <f; exec 3<>g; echo three >&3; exec 3>&-; \
         cat g; { echo a; echo b; } >h; cat h; exec 4>>h; echo c >&4; echo d >&4; exec 4>&-; cat h; test -s h; ! test -s nothing; \
         mkdir sub; cd sub; pwd | sed 's,.*/,,'; cd ..; (cd sub; : >made); ls sub; exec 5<h; read -r x <&5; read -r y <&5; echo $x$y",
    );
}

#[test]
fn streams_of_the_c_library() {
    need!(
        env::kernel_mounts(),
        env::tools(&["tee", "sort", "tail", "head", "wc", "cut", "paste", "split", "awk"])
    );
    script(
        MKFS[1],
        "seq 1 2000 | split -l 5000 - all-; mv all-aa n; head -3 n; tail -2 n; wc n; cut -c1 n | sort | uniq -c; paste n n | tail -1; split -l 700 n part-; wc -l part-*; \
         awk '{ s += $1 } END { print s >\"sum\" }' n; cat sum; seq 5 | tee five; cat five; sort -n -r n -o r; head -1 r; \
         seq 1 3 | awk '{ print >\"awk-\" $1 }'; cat awk-2; comm -12 n n | wc -l",
    );
}

/// Output of an external command, whose standard output the shell opened in the image, gets an error and nothing else.
#[test]
fn a_descriptor_that_outlives_exec_is_refused() {
    need!(env::tools(&["mke2fs", "e2fsck", "cat"]));
    let image = Image::new(MKFS[0]);
    let mut command = image.command("sh");
    let text = "cd \"$T\"; echo text >f; exec 3<>f; cat <&3; echo status $?; exec 3<&-; cat f";
    let output = oracle::output(command.args(["-c", text])).expect("sh");
    let said = said(&output);
    assert!(said.contains("Bad file descriptor"), "{said}");
    assert!(said.contains("status 1\ntext\n"), "{said}");
    image.assert_clean();
}

#[test]
fn python_walks_and_copies_trees() {
    need!(env::kernel_mounts());
    let Some(python) = python() else {
        println!("skipped: no python3 on this machine");
        return;
    };
    let text = "
import os, shutil, subprocess, tempfile, zipfile
os.chdir(os.environ['T'])
os.makedirs('p/q/r')
for i in range(50):
    with open(f'p/q/f{i}', 'w') as f: f.write('x' * i * 100)
shutil.copytree('p', 'c')
print(sorted(os.listdir('c/q')), os.path.getsize('c/q/f49'))
for root, dirs, files in os.walk('c'): print(root, sorted(dirs), len(files))
with zipfile.ZipFile('z.zip', 'w') as z:
    for i in range(50): z.write(f'p/q/f{i}')
print(zipfile.ZipFile('z.zip').testzip(), len(zipfile.ZipFile('z.zip').namelist()))
os.unlink('z.zip'); shutil.move('c/q', 'moved'); shutil.rmtree('c')
with tempfile.TemporaryFile(dir='.') as t:
    t.write(b'abc'); t.seek(0); print(t.read())
with tempfile.NamedTemporaryFile(dir='.', delete=False) as t: name = t.name
os.replace(name, 'kept')
print(subprocess.run(['ls', '.'], capture_output=True, text=True))
print(os.path.realpath('moved/../p').split('/')[-1])
";
    compare(MKFS[0], &python, &["-c", text]);
}

#[test]
fn sqlite_without_mappings() {
    need!(env::kernel_mounts(), env::tools(&["sqlite3"]));
    let text = "sqlite3 db \"create table t(a integer primary key, b text); \
        with recursive n(i) as (select 1 union all select i+1 from n where i < 3000) insert into t select i, hex(i*i) from n; \
        delete from t where a % 3 = 0; update t set b = b || 'x' where a % 7 = 1; vacuum; \
        select count(*), sum(length(b)) from t; pragma integrity_check;\"; sqlite3 db 'select * from t where a = 1000'; rm db";
    for mkfs in MKFS {
        script(mkfs, text);
    }
}

#[test]
fn options_are_those_of_a_mount() {
    need!(env::tools(&["mke2fs", "e2fsck", "touch", "ls"]));
    let image = Image::new(MKFS[0]);
    let mut command = image.command("touch");
    let output = oracle::output(command.env("EXTANT_OPTIONS", "ro").arg(format!("{ROOT}/f"))).expect("touch");
    assert!(said(&output).contains("Read-only file system"), "{}", said(&output));
    let mut command = image.command("ls");
    let output = oracle::output(command.env("EXTANT_OPTIONS", "nonsense").arg(ROOT)).expect("ls");
    let text = said(&output);
    assert!(text.contains("nonsense") && text.contains("Invalid argument"), "{text}");
    image.assert_clean();
}

#[test]
fn a_wrong_environment_is_said_and_serves_nothing() {
    need!(env::tools(&["mke2fs", "ls"]));
    let image = Image::new(MKFS[0]);
    let run = |change: &dyn Fn(&mut std::process::Command)| {
        let mut command = image.command("ls");
        change(&mut command);
        said(&oracle::output(command.arg(ROOT)).expect("ls"))
    };
    let text = run(&|c| {
        c.env_remove("EXTANT_IMAGE");
    });
    assert!(text.contains("both EXTANT_IMAGE and EXTANT_ROOT") && text.contains("No such file"), "{text}");
    let text = run(&|c| {
        c.env("EXTANT_ROOT", "/");
    });
    assert!(text.contains("EXTANT_ROOT may not be"), "{text}");
    let text = run(&|c| {
        c.env("EXTANT_IMAGE", "/nowhere/image");
    });
    assert!(text.contains("/nowhere/image") && text.contains("No such file"), "{text}");
    let text = run(&|c| {
        c.env("EXTANT_IMAGE", format!("{ROOT}/image"));
    });
    assert!(text.contains("lies below"), "{text}");
}

/// A second process gets an error while the first has the image, not a share of it.
#[test]
fn an_image_has_one_process_at_a_time() {
    need!(env::tools(&["mke2fs", "e2fsck", "ls"]));
    let image = Image::new(MKFS[0]);
    let mut command = image.command("sh");
    // The shell has the image while it has the file open: its children do not.
    let text = "exec 3>\"$T\"/f; echo one >&3; ls \"$T\"; echo two >&3; exec 3>&-; ls \"$T\"";
    let said = said(&oracle::output(command.args(["-c", text])).expect("sh"));
    assert!(said.contains("Device or resource busy"), "{said}");
    assert!(said.starts_with("f\nlost+found\n"), "{said}");
    let content = oracle::debugfs_cat(&image.path, "/f");
    assert_eq!(content, b"one\ntwo\n");
    image.assert_clean();
}
