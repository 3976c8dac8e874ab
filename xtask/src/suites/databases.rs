//! LMDB's own test programs and SQLite with `PRAGMA mmap_size`, over the preloaded library: databases that read, and LMDB that writes,
//! through mappings of files of the image.

use std::path::Path;
use std::process::Command;

use super::Built;
use super::preload::{KINDS, Preloaded, ROOT};
use crate::rig::{built_library, quiet, tool};

/// LMDB's test programs, in the order that each finds the database which it needs.
const LMDB: [&str; 5] = ["mtest", "mtest2", "mtest3", "mtest4", "mtest5"];

/// Two journal modes, rows changed and removed, the file made smaller by VACUUM while it is mapped.
const SQL: &str = "PRAGMA mmap_size=67108864; PRAGMA journal_mode=MODE; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); BEGIN; \
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000) \
    INSERT INTO t SELECT i, hex(id + i * 7919) FROM n, (SELECT 1 AS id); COMMIT; \
    CREATE INDEX by_v ON t(v); UPDATE t SET v = v || 'x' WHERE id % 3 = 0; DELETE FROM t WHERE id % 2 = 0; VACUUM; \
    INSERT INTO t SELECT id + 30000, v FROM t; SELECT sum(length(v)) FROM t; PRAGMA integrity_check;";

/// Runs a program with arguments; what it said.
type Run<'a> = &'a dyn Fn(&Path, &[&str]) -> Result<String, String>;

/// What the databases hold afterwards: every line of LMDB's and of SQLite's own dumps.
fn dumps(run: Run<'_>, lmdb: &Path, root: &str) -> Result<String, String> {
    let sqlite = tool("sqlite3")?;
    let mut all = run(&lmdb.join("mdb_dump"), &["-a", &format!("{root}/testdb")])?;
    for mode in ["delete", "wal"] {
        all += &run(&sqlite, &[&format!("{root}/{mode}.db"), "PRAGMA mmap_size=67108864;", ".dump"])?;
    }
    Ok(all)
}

pub(super) fn databases(built: &Built<'_>, _long: bool) -> Result<String, String> {
    let library = built_library("extant-preload", "libextant_preload.so")?;
    let (lmdb, sqlite) = (built.suites.join("lmdb"), tool("sqlite3")?);
    let mut lines = 0;
    for kind in KINDS {
        let describe = |err: String| format!("{} {}: {err}", kind.0, kind.1);
        let image = Preloaded::new(&library, &built.rig.dir, kind)?;
        image.run(&tool("mkdir")?, &[&format!("{ROOT}/testdb")])?;
        for name in LMDB {
            // They open ./testdb.
            let program = lmdb.join(name);
            let program = program.to_str().ok_or("a path that is no text")?;
            image.run(&tool("env")?, &["-C", ROOT, program]).map_err(describe)?;
        }
        for mode in ["delete", "wal"] {
            let said = image
                .run(&sqlite, &[&format!("{ROOT}/{mode}.db"), &SQL.replace("MODE", mode)])
                .map_err(describe)?;
            if said.lines().last() != Some("ok") {
                return Err(describe(format!("SQLite, {mode}: {said}")));
            }
        }
        let ours = dumps(&|program, args| image.run(program, args), &lmdb, ROOT).map_err(describe)?;
        image.check().map_err(describe)?;
        let kernel = built.rig.dir.join("databases");
        std::fs::create_dir_all(&kernel).map_err(|err| err.to_string())?;
        quiet(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&image.image).arg(&kernel))?;
        let root = kernel.to_str().ok_or("a path that is no text")?;
        let theirs = dumps(&|program, args| quiet(Command::new(program).args(args)), &lmdb, root);
        quiet(Command::new("umount").arg(&kernel))?;
        if ours != theirs.map_err(describe)? {
            return Err(describe("the kernel reads other rows".into()));
        }
        lines += ours.lines().count();
    }
    Ok(format!(
        "{} of LMDB's programs, SQLite mapped in 2 journal modes, on each of {} kinds of image; {lines} dumped lines equal on the kernel",
        LMDB.len(),
        KINDS.len()
    ))
}
