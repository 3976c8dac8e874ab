//! What is kept of files, and for how long.

use std::time::{Duration, Instant};

use extant_sys::transfers::UnderWay::{Nothing, Perhaps, ThreadsRun};

use super::{Doubt, MOST_FILES, Remembered};

#[test]
fn a_file_is_remembered_until_nothing_can_be_under_way() {
    let (mut all, since) = (Remembered::default(), Instant::now());
    let later = |ms| since + Duration::from_millis(ms);
    all.add(12, Doubt::new(since));
    all.add(13, Doubt::new(later(20_000)));
    all.look(Perhaps, later(25_000));
    assert!(all.find(12).is_some() && all.find(13).is_some() && all.find(14).is_none());
    all.look(Perhaps, later(30_000));
    assert!(all.find(12).is_none() && all.find(13).is_some(), "half a minute is over for one of them");
    all.look(ThreadsRun, later(31_000));
    assert!(all.find(13).is_some(), "one look at running threads says nothing");
    all.add(12, Doubt::new(later(31_500)));
    all.look(ThreadsRun, later(32_000));
    assert!(all.find(12).is_some() && all.find(13).is_none());
    all.look(Nothing, later(32_001));
    assert!(all.is_empty());
}

#[test]
fn of_too_many_files_each_is_one_of_them() {
    let (mut all, since) = (Remembered::default(), Instant::now());
    for number in 0..MOST_FILES as u64 {
        all.add(number, Doubt::new(since));
    }
    assert!(all.find(1 << 40).is_none());
    all.add(3, Doubt::new(since));
    assert_eq!(all.files.len(), MOST_FILES, "it was there");
    let last = since + Duration::from_secs(1);
    all.add(1 << 41, Doubt::new(last));
    assert!(all.files.is_empty() && all.find(1 << 40).is_some() && all.find(0).is_some());
    all.look(Perhaps, since + Duration::from_secs(30));
    assert!(all.find(0).is_some(), "the last of them is younger");
    all.look(Perhaps, last + Duration::from_secs(30));
    assert!(all.is_empty());
}

#[test]
fn after_too_many_files_the_next_ones_are_told_from_each_other() {
    let (mut all, since) = (Remembered::default(), Instant::now());
    let later = |ms| since + Duration::from_millis(ms);
    for number in 0..=MOST_FILES as u64 {
        all.add(number, Doubt::new(since));
    }
    all.add(5, Doubt::new(later(20_000)));
    assert!(all.find(5).is_some() && all.find(6).is_some(), "one of too many");
    all.look(Perhaps, later(30_000));
    assert!(all.find(5).is_some(), "it came again");
    assert!(
        all.find(6).is_none() && all.find(1 << 40).is_none(),
        "their time is over, whatever came after them"
    );
    all.look(Perhaps, later(50_000));
    assert!(all.is_empty());
}
