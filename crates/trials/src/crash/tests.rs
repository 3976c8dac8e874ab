use extant_testkit::model::Model;
use extant_testkit::script::{Executor as _, parse};

use super::history::History;
use super::judge::{Found, judge};
use super::space;

fn found(history: &History, i: usize) -> Found {
    let moment = &history.moments[i];
    let contents = moment
        .inodes
        .iter()
        .filter_map(|(path, inode)| Some((path.clone(), moment.contents.get(inode)?.clone())))
        .collect();
    Found { tree: moment.tree.clone(), contents }
}

fn history(text: &str) -> History {
    History::of(&space::prepare(), &parse(text).unwrap())
}

#[test]
fn the_tables_are_scripts() {
    let operations = space::operations();
    assert_eq!(operations.len(), 49);
    assert_eq!(space::ones().count(), 49 * 4);
    assert_eq!(space::twos().count(), 49 * 4 * 49 * 2);
    for op in &operations {
        let mut model = Model::after(&space::prepare());
        model.apply(op).unwrap_or_else(|err| panic!("`{op}`: {err}"));
    }
}

#[test]
fn every_moment_since_the_promise_is_allowed() {
    let history = history("rename a b\nwrite b 0 100 9\nsync\nunlink d/a\nappend b 50 8");
    let promise = history.promise(5);
    assert_eq!(promise.names, 2);
    for i in 2..=5 {
        judge(&history, &promise, &found(&history, i)).unwrap();
    }
    for i in 0..2 {
        judge(&history, &promise, &found(&history, i)).unwrap_err();
    }
}

#[test]
fn without_a_sync_the_old_tree_is_allowed() {
    let history = history("rename a b\nwrite b 0 100 9");
    for i in 0..=2 {
        judge(&history, &history.promise(2), &found(&history, i)).unwrap();
    }
}

#[test]
fn names_of_two_moments_at_once_are_not_allowed() {
    let history = history("create b 644\ncreate d/b 600");
    let mut mixed = found(&history, 2);
    mixed.tree.nodes.remove(&b"b"[..]);
    judge(&history, &history.promise(2), &mixed).unwrap_err();
}

#[test]
fn a_byte_that_never_was_is_not_allowed() {
    let history = history("write a 0 100 9");
    let mut wrong = found(&history, 1);
    let bytes = wrong.contents.get_mut(&b"a"[..]).unwrap();
    let (old, new) = (history.moments[0].contents.clone(), bytes.clone());
    let was = old.values().find(|v| v.len() == 6000).unwrap()[0];
    bytes[0] = (0..=255).find(|b| *b != was && *b != new[0]).unwrap();
    judge(&history, &history.promise(1), &wrong).unwrap_err();
    // Half old, half new is what an overwrite in place may leave.
    let mut half = found(&history, 1);
    half.contents.get_mut(&b"a"[..]).unwrap()[0] = was;
    judge(&history, &history.promise(1), &half).unwrap();
}

#[test]
fn fsync_promises_the_file_and_what_came_before_it() {
    let history = history("create b 644\nwrite b 0 5000 9\nfsync b\nunlink a");
    let promise = history.promise(4);
    assert_eq!(promise.names, 2, "the last operation that changed b");
    let mut lost = found(&history, 4);
    lost.contents.get_mut(&b"b"[..]).unwrap().clear();
    judge(&history, &promise, &lost).unwrap_err();
    judge(&history, &promise, &found(&history, 2)).unwrap();
}

#[test]
fn fdatasync_does_not_promise_a_change_of_mode() {
    let history = history("chmod a 600\nfdatasync a");
    assert_eq!(history.promise(2).names, 0);
    let history = self::history("chmod a 600\nfsync a");
    assert_eq!(history.promise(2).names, 1);
}

#[test]
fn fsync_of_a_directory_promises_its_names() {
    let history = history("rename a d/b\nfsync d\nunlink s");
    assert_eq!(history.promise(3).names, 1);
}
