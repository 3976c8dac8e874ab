//! A report as JSON, by hand: numbers, fixed names and texts without quotes are all there is.

use crate::{Finding, Place, Report, Severity};
use std::fmt::Write as _;

/// The report as one JSON object; of a filesystem that was not checked if not `checked`.
pub(crate) fn report(report: &Report, image: &str, checked: bool) -> String {
    let mut out = String::from("{");
    let _ = write!(out, "\"image\":{},\"clean\":{},\"checked\":{checked},", quote(image), report.is_clean());
    let _ = write!(out, "\"exit_status\":{},", report.exit_status());
    let t = &report.totals;
    let _ = write!(
        out,
        "\"inodes\":{},\"inodes_count\":{},\"blocks\":{},\"blocks_count\":{},",
        t.inodes, t.inodes_count, t.blocks, t.blocks_count
    );
    // Nobody has counted them otherwise.
    let directories = if checked { t.directories.to_string() } else { "null".into() };
    let _ = write!(out, "\"directories\":{directories},");
    let _ = write!(out, "\"left_out\":{},\"findings\":[", report.left_out);
    let findings: Vec<String> = report.findings.iter().map(finding).collect();
    out.push_str(&findings.join(","));
    out.push_str("]}");
    out
}

fn finding(f: &Finding) -> String {
    let severity = match f.kind.severity() {
        Severity::Note => "note",
        Severity::Error => "error",
        Severity::Fatal => "fatal",
    };
    let values: Vec<String> = f.kind.values().iter().map(|(n, v)| format!("\"{n}\":{v}")).collect();
    format!(
        "{{\"pass\":\"{}\",\"kind\":\"{}\",\"severity\":\"{severity}\",\"place\":{{{}}},\"values\":{{{}}},\"text\":{}}}",
        f.pass.name(),
        f.kind.name(),
        place(&f.place),
        values.join(","),
        quote(&f.to_string())
    )
}

fn place(place: &Place) -> String {
    match place {
        Place::Filesystem => String::new(),
        Place::Group(g) => format!("\"group\":{g}"),
        Place::Inode(i) => format!("\"inode\":{i}"),
        Place::Block(b) => format!("\"block\":{b}"),
        Place::DirBlock(i, l) => format!("\"inode\":{i},\"lblk\":{l}"),
        Place::DirEntry(i, l, o) => format!("\"inode\":{i},\"lblk\":{l},\"offset\":{o}"),
        Place::QuotaFile(t) => format!("\"quota\":{t}"),
    }
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
