use super::*;

#[test]
fn names_there_and_back() {
    for bit in 0..32 {
        let sets = [
            Features { compat: Compat::from_bits_retain(1 << bit), ..Features::default() },
            Features { incompat: Incompat::from_bits_retain(1 << bit), ..Features::default() },
            Features { ro_compat: RoCompat::from_bits_retain(1 << bit), ..Features::default() },
        ];
        for set in sets {
            assert_eq!(Features::from_name(&set.names()), Some(set), "{set}");
        }
    }
    assert_eq!(Features::from_name("extents"), Features::from_name("extent"));
    assert_eq!(Features::from_name("nonsense"), None);
    assert_eq!(Features::from_name("FEATURE_C99"), None);
    assert_eq!(Features::default().names(), "(none)");
}
