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
    let scripts = |len, seed, most| scripts(Space::Calls, len, seed, most);
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

#[test]
fn the_space_of_stores_is_what_it_says() {
    let all = |len| scripts(Space::Stores, len, 0, 0);
    assert_eq!(
        (changes_with_stores().len(), all(1).len(), all(2).len()),
        (39, 15, 2736),
        "docs/testing.md has these"
    );
    let two = all(2);
    let stores: Vec<Op> = changes_with_stores()
        .concat()
        .into_iter()
        .filter(|op| matches!(op, Op::Store { .. } | Op::Persist { .. }))
        .collect();
    assert!(stores.iter().all(|op| two.iter().any(|s| s.contains(op))));
    assert!(
        two.iter().chain(&scripts(Space::Stores, 3, 1, 20)).all(|s| s.iter().any(|op| stores.contains(op)))
    );
}

#[test]
fn stores_are_there_after_msync_and_may_be_before() {
    let script = "store a 4000 300 32\nmsync a";
    assert!(judge(script, "write a 4000 300 32", 2).is_ok());
    assert!(judge(script, "", 1).is_ok());
    assert!(judge(script, "", 2).is_err());
    assert!(judge(script, "write a 4000 300 33", 1).is_err(), "other bytes");
    assert!(Model::after(&setup()).apply(&"store a 8900 200 1".parse().unwrap()).is_err(), "past the end");
}

#[test]
fn what_was_persisted_is_there_at_once() {
    let script = "store a 0 10 31\npersist a 4000 300 41\nwrite a 4100 100 11\ntruncate a 4200";
    assert!(judge(script, "", 1).is_ok());
    assert!(judge(script, "", 2).is_err());
    assert!(judge(script, "write a 4000 300 41", 2).is_ok(), "what was stored without that may be lost");
    assert!(judge(script, "write a 0 10 31\nwrite a 4000 300 41\nwrite a 4100 100 11", 3).is_ok());
    assert!(judge(script, "write a 4000 300 41\nwrite a 4100 100 1", 3).is_err(), "older than that");
    assert!(judge(script, "truncate a 4000", 2).is_err(), "not the file's");
    assert!(judge(script, "write a 4000 300 41\ntruncate a 4200", 3).is_ok());
}

#[test]
fn what_was_written_in_place_after_a_move_may_be_at_the_place_before_it() {
    let script = parse("collapse a 0 4096\nstore a 0 100 31").unwrap();
    let found = tree_after("collapse a 0 4096\nwrite a 0 100 31\ninsert a 0 4096\nwrite a 0 4096 1");
    assert!(History::new(&script).judge(&found, 2).is_err());
    assert!(History::new(&script).with_blocks(4096).judge(&found, 2).is_ok());
    let foreign = tree_after("write a 4096 100 99");
    assert!(History::new(&script).with_blocks(4096).judge(&foreign, 2).is_err());
    let without_move = parse("store a 0 100 31").unwrap();
    assert!(History::new(&without_move).with_blocks(4096).judge(&found, 1).is_err());
}
