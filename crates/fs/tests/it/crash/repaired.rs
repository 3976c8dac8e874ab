//! Without a journal a crash wants a check, and e2fsck repairs every state; what sync(2) has written is there in full once
//! nothing was written after it. Other states may be repaired to anything consistent.

use extant_testkit::crash::History;
use extant_testkit::script::{Op, text};
use extant_testkit::sim::{Content, SimDevice};
use extant_testkit::{oracle, scratch};

use super::lab::{Lab, check};
use crate::support::tree_of;

/// Runs a script and judges every state of it.
pub(super) fn explore(lab: &mut Lab, script: &[Op]) {
    let Some(device) = lab.record(script) else {
        lab.counts.refused += 1;
        return;
    };
    lab.counts.scripts += 1;
    let history = History::new(script);
    device.crash_plan(lab.seed).for_each_sketch(|sketch| {
        lab.counts.states += 1;
        let counts =
            sketch.sectors().iter().zip(sketch.values()).filter(|(sector, _)| !lab.masked.contains(**sector));
        let done = sketch.marks.last().copied().unwrap_or(0) as usize;
        // Whether anything is promised is a part of what is judged.
        let digest = counts.fold(done as u128, |sum, (_, value)| sum.wrapping_add(*value));
        if !lab.is_new(digest) {
            return;
        }
        lab.counts.recoveries += 1;
        let content = sketch.content();
        let whole = done == script.len();
        if let Err(problem) = judge(lab, whole.then_some(&history), &content, done) {
            let (epoch, cut, seed) = (sketch.epoch, sketch.cut, lab.seed);
            lab.fail((
                content,
                format!("epoch {epoch} {cut:?}: {problem}; seed={seed}, script:\n{}", text(script)),
            ));
        }
    });
}

/// Our checker looks at the state as it is (any verdict, no panic), e2fsck repairs it, and we mount and judge the rest.
fn judge(lab: &Lab, history: Option<&History>, content: &Content, done: usize) -> Result<(), String> {
    let raw = SimDevice::from_content(content.clone());
    let _any = check(&raw);
    let scratch = scratch();
    let image = scratch.join("state.img");
    content.to_file(&image).map_err(|e| e.to_string())?;
    let repaired = oracle::e2fsck_with(&image, &["-fy"]);
    if !matches!(repaired.status, 0 | 1) {
        return Err(format!("e2fsck -fy: {repaired}"));
    }
    let device = SimDevice::from_file(&image);
    check(&device)?;
    let fs = lab.mount(&device).map_err(|e| format!("mount: {e}"))?;
    let tree = tree_of(&fs);
    fs.unmount().map_err(|e| format!("unmount: {e}"))?;
    history.map_or(Ok(()), |history| history.judge(&tree, done))
}
