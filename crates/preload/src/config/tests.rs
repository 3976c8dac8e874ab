//! Which paths are ours, as text.

use super::{Config, Cwd, joined, normal};

fn config(root: &str) -> Config {
    Config { image: b"/images/disk".to_vec(), root: root.as_bytes().to_vec(), options: String::new() }
}

fn below<'a>(root: &str, path: &'a str) -> Option<&'a str> {
    config(root).below(path.as_bytes()).map(|rest| std::str::from_utf8(rest).expect("utf-8"))
}

#[test]
fn a_path_is_ours_below_the_root_only() {
    assert_eq!(below("/x", "/x"), Some(""));
    assert_eq!(below("/x", "/x/a/b"), Some("/a/b"));
    assert_eq!(below("/x", "/xy/a"), None);
    assert_eq!(below("/x", "/"), None);
    assert_eq!(below("/x", "/y/x/a"), None);
    assert_eq!(below("/mnt/x", "/mnt"), None);
    assert_eq!(below("/mnt/x", "/mnt/x/../y"), Some("/../y"));
}

#[test]
fn dots_and_slashes_before_the_root_are_seen_through() {
    assert_eq!(below("/x", "//x//a"), Some("//a"));
    assert_eq!(below("/x", "/./x/a"), Some("/a"));
    assert_eq!(below("/x", "/tmp/../x/a"), Some("/a"));
    assert_eq!(below("/x", "/../x"), Some(""));
    assert_eq!(below("/mnt/x", "/mnt/.hidden/../x/a"), Some("/a"));
    assert_eq!(below("/mnt/x", "/mnt/.x/a"), None);
    assert_eq!(below("/x", "//y/./a"), None);
}

#[test]
fn paths_as_text() {
    assert_eq!(normal(b"/a/./b//../c/"), b"/a/c");
    assert_eq!(normal(b"/.."), b"/");
    assert_eq!(joined(b"/a", b"b"), b"/a/b");
    assert_eq!(joined(b"/a", b"/b"), b"/b");
    assert_eq!(config("/mnt/x").above(), b"/mnt");
    assert_eq!(config("/x").above(), b"/");
}

#[test]
fn the_root_is_reached_from_above_it_only() {
    assert!(config("/mnt/x").is_below(b"/"));
    assert!(config("/mnt/x").is_below(b"/mnt"));
    assert!(!config("/mnt/x").is_below(b"/mn"));
    assert!(!config("/mnt/x").is_below(b"/mnt/x"));
    assert_eq!(super::from_outside(&Cwd::Host, b"a/b"), None);
    assert_eq!(super::from_outside(&Cwd::Above(b"/mnt".to_vec()), b"x/b").as_deref(), Some(&b"/mnt/x/b"[..]));
}
