use rustix::io::Errno;

use super::{DirExecutor, Executor as _, Mix, Op, parse, random, run_all, text};
use crate::kernel::KernelMount;
use crate::model::Model;
use crate::{Rng, env, need, oracle};

#[test]
fn a_script_is_the_same_after_print_and_parse() {
    let seed = env::seed();
    let ops = random(&mut Rng::new(seed), 500, &Mix::default());
    assert_eq!(parse(&text(&ops)).unwrap(), ops);
}

#[test]
fn lines_that_are_no_operation_are_refused() {
    for line in
        ["frob a", "write a 1 2", "write a x 2 3", "mkdir a 9", "sync now", "rename a b softly", "mknod a 1"]
    {
        assert!(line.parse::<Op>().is_err(), "{line}");
    }
}

#[test]
fn the_model_knows_the_errors_of_names() {
    let mut model = Model::new();
    let mut outcome = |line: &str| model.apply(&line.parse().unwrap());
    assert_eq!(outcome("mkdir d 755"), Ok(()));
    assert_eq!(outcome("create d/a 644"), Ok(()));
    assert_eq!(outcome("create d/a 644"), Err(Errno::EXIST));
    assert_eq!(outcome("create x/a 644"), Err(Errno::NOENT));
    assert_eq!(outcome("create d/a/b 644"), Err(Errno::NOTDIR));
    assert_eq!(outcome("rmdir d"), Err(Errno::NOTEMPTY));
    assert_eq!(outcome("unlink d"), Err(Errno::ISDIR));
    assert_eq!(outcome("rename d d/e"), Err(Errno::INVAL));
    assert_eq!(outcome("rename d/a d"), Err(Errno::NOTEMPTY));
    assert_eq!(outcome("write d 0 1 1"), Err(Errno::ISDIR));
    assert_eq!(outcome("removexattr d/a user.x"), Err(Errno::NODATA));
    assert_eq!(outcome(&format!("create {} 644", "n".repeat(256))), Err(Errno::NAMETOOLONG));
}

#[test]
fn the_model_and_the_kernel_agree() {
    need!(env::kernel_mounts());
    let seed = env::seed();
    let dir = crate::scratch();
    for round in 0..4 {
        let image = dir.join("image");
        oracle::mke2fs(&image, 32 << 20, "-t ext4 -O ea_inode");
        let mount = KernelMount::rw(&image);
        let ops = random(&mut Rng::new(seed).fork(round), 400, &Mix::default());
        run_all(&ops, &mut [&mut DirExecutor::new("the kernel", mount.path()), &mut Model::new()]);
        mount.unmount();
        oracle::assert_clean(&image);
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn open_files_outlive_their_names() {
    need!(env::kernel_mounts());
    let script = "
        create a 644
        write a 0 9000 1
        open a @a
        unlink a
        write @a 4000 100 2
        create a 600
        append @a 10 3
        setxattr @a user.x 10 4
        removexattr @a user.y
        open a @b
        rename a b
        truncate @b 5000
        chmod @b 640
        fsync @a
        close @a
        close @a
        write @a 0 1 1
    ";
    let dir = crate::scratch();
    let image = dir.join("image");
    oracle::mke2fs(&image, 8 << 20, "-t ext4");
    let mount = KernelMount::rw(&image);
    let ops = parse(script).unwrap();
    assert_eq!(parse(&text(&ops)).unwrap(), ops);
    {
        let mut kernel = DirExecutor::new("the kernel", mount.path());
        let mut model = Model::new();
        for op in &ops {
            assert_eq!(kernel.apply(op), model.apply(op), "{op}");
        }
        // Only now: a reader of the tree has files open itself.
        assert_eq!(kernel.apply(&"close @b".parse().unwrap()), Ok(()));
        kernel.tree().assert_equal(&model.snapshot(), "open files");
    }
    mount.unmount();
    oracle::assert_clean(&image);
}

#[test]
#[should_panic(expected = "content from byte 3")]
fn a_wrong_byte_is_found() {
    let mut good = Model::new();
    let mut bad = Model::new();
    for model in [&mut good, &mut bad] {
        model.apply(&"create a 644".parse().unwrap()).unwrap();
        model.apply(&"write a 0 100 1".parse().unwrap()).unwrap();
    }
    bad.apply(&"write a 3 1 2".parse().unwrap()).unwrap();
    run_all(&[], &mut [&mut good, &mut bad]);
}
