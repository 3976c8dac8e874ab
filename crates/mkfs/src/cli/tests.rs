use super::*;
use crate::size::Size;

fn parsed(line: &str) -> Command {
    parse(line.split_whitespace().map(OsString::from)).unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn refused(line: &str) -> String {
    parse(line.split_whitespace().map(OsString::from)).unwrap_err().to_string()
}

#[test]
fn options_stand_anywhere() {
    for line in [
        "-q -F -t ext3 -b 1024 image 10m",
        "image -qF -text3 10m -b1024",
        "image 10m -q -b 1024 -Ft ext3",
        "-qFtext3 -b1k -- image 10m",
    ] {
        let c = parsed(line);
        assert_eq!(c.image, PathBuf::from("image"));
        assert!(c.quiet && c.force && !c.dry_run, "{line}");
        assert_eq!(c.options.fs_type.as_deref(), Some("ext3"));
        assert_eq!(c.options.block_size, Some(1024));
        assert_eq!(c.options.size, Some(Size::Bytes(10 << 20)));
    }
}

#[test]
fn values() {
    let c = parsed(
        "-E stride=4,stripe_width=8,root_owner=5:6,quotatype=usr:prj,resize=1g,discard -J size=64,location=7 \
         -O ^has_journal -O none --owner=1:2 --root-owner 3 -m 1.5 -d - -b -2048 -e panic -U clear image",
    );
    let (o, e) = (&c.options, &c.options.extended);
    assert_eq!((e.stride, e.stripe_width, e.discard), (Some(4), Some(8), Some(true)));
    assert_eq!((e.root_owner, o.owner), (Some((3, 3)), Some((1, 2))));
    assert_eq!(e.quota_types, Some([true, false, true]));
    assert_eq!(e.resize, Some(Size::Bytes(1 << 30)));
    assert_eq!((o.journal_size, o.journal_location), (Some(64), Some(Size::Blocks(7))));
    assert_eq!(o.features, ["^has_journal", "none"]);
    assert_eq!((o.reserved_percent, o.block_size, o.errors), (Some(1.5), Some(-2048), Some(3)));
    assert_eq!(o.source, Some(Source::Stdin));
    assert!(o.uuid_clear);
}

#[test]
fn errors_name_the_option() {
    for (line, word) in [
        ("", "image is missing"),
        ("image 10m more", "too many"),
        ("image -b", "-b: a value is missing"),
        ("image -b x", "bad size 'x'"),
        ("image -y", "-y: unknown option"),
        ("image --nonsense", "--nonsense"),
        ("image -E nonsense", "-E nonsense"),
        ("image -E stride", "-E stride: a value is missing"),
        ("image -E encoding=utf8", "casefold"),
        ("image -J nonsense=1", "-J nonsense"),
        ("image -J size", "-J size"),
        ("image -U nonsense", "-U nonsense"),
        ("image -m x", "-m x"),
        ("image -z undo", "undo"),
        ("image --owner root", "--owner root"),
    ] {
        let message = refused(line);
        assert!(message.contains(word), "{line}: {message}");
    }
}
