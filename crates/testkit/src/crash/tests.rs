use super::*;

fn tree_after(ops: &str) -> Tree {
    let mut model = Model::after(&setup());
    for op in parse(ops).unwrap() {
        model.apply(&op).unwrap();
    }
    model.snapshot()
}

fn judge(script: &str, found: &str, done: usize) -> Result<(), String> {
    History::new(&parse(script).unwrap()).judge(&tree_after(found), done)
}

#[test]
fn what_was_synced_must_be_there_and_what_was_not_may_be() {
    let script = "create n 644\nsync\nmkdir m 755";
    assert!(judge(script, "", 0).is_ok());
    assert!(judge(script, "", 1).is_ok());
    assert!(judge(script, "", 2).is_err());
    assert!(judge(script, "create n 644", 2).is_ok());
    assert!(judge(script, "create n 644\nmkdir m 755", 2).is_ok());
    assert!(judge(script, "mkdir m 755", 2).is_err(), "out of order");
}

#[test]
fn fsync_promises_its_inode_and_what_came_before_its_last_change() {
    let script = "mkdir m 755\nwrite d/c 0 10 5\nfsync d/c\n";
    assert!(judge(script, "", 3).is_err());
    assert!(judge(script, "mkdir m 755", 3).is_err());
    assert!(judge(script, "mkdir m 755\nwrite d/c 0 10 5", 3).is_ok());
    let unrelated = "mkdir m 755\nfsync a\n";
    assert!(judge(unrelated, "", 2).is_ok());
    let metadata = "chmod a 600\nfdatasync a\n";
    assert!(judge(metadata, "", 2).is_ok());
    assert!(judge("chmod a 600\nfsync a\n", "", 2).is_err());
}

#[test]
fn contents_mix_versions_but_nothing_else() {
    let script = "append a 3000 15\nchmod a 600";
    assert!(judge(script, "", 2).is_ok());
    assert!(judge(script, "append a 1000 15\nchmod a 600", 2).is_ok());
    assert!(
        judge(script, "chmod a 600\ntruncate a 10000", 2).is_ok(),
        "a hole reads as the end of the old file"
    );
    assert!(judge(script, "chmod a 600\nappend a 100 99", 2).is_err());
    assert!(judge(script, "chmod a 600\ntruncate a 8999", 2).is_err());
    assert!(judge("append a 3000 15\nfdatasync a", "truncate a 12000", 2).is_err());
}

#[test]
fn a_file_without_a_name_is_judged_by_its_inode() {
    let script = "open a @a\nunlink a\nwrite @a 0 100 20\nfdatasync @a";
    assert!(judge(script, "write a 0 100 20", 4).is_ok(), "fdatasync promises the content, not the unlink");
    assert!(judge(script, "", 4).is_err());
    assert!(judge(script, "write a 0 100 20", 2).is_ok(), "content may be newer than names");
    assert!(judge(script, "write a 0 100 21", 4).is_err());
    assert!(judge(script, "unlink a", 4).is_ok());
    let script = "open a @a\nunlink a\nwrite @a 0 100 20\nfsync @a\nclose @a";
    assert!(judge(script, "", 4).is_err(), "fsync does");
    assert!(judge(script, "unlink a", 4).is_ok());
}

#[test]
fn the_space_is_what_it_says() {
    let one = scripts(1, 0, 0);
    assert_eq!(
        (changes().len(), one.len(), scripts(2, 0, 0).len()),
        (62, 132, 20_820),
        "docs/testing.md has these"
    );
    let later = |op: &Op| op.to_string().contains(" n ") || op.to_string().contains('@');
    assert!(changes().iter().flatten().all(|op| later(op) || one.iter().any(|s| s.contains(op))));
    let two = scripts(2, 0, 0);
    assert!(changes().iter().flatten().all(|op| two.iter().any(|s| s.contains(op))));
    assert_eq!(scripts(3, 1, 20), scripts(3, 1, 20));
    assert_ne!(scripts(3, 1, 20), scripts(3, 2, 20));
}
