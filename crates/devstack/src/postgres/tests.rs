use super::*;

#[test]
fn the_state_of_a_server_is_read_from_its_file() {
    let text = "4711\n/data\n1790000000\n54321\n\n127.0.0.1\n  1234  5678\nready   \n";
    let state = PidFile::parse(text).unwrap();
    assert_eq!((state.pid, state.port, state.ready), (4711, Some(54321), true));

    let starting = PidFile::parse(&text.replace("ready   ", "starting")).unwrap();
    assert!(!starting.ready);
    let young = PidFile::parse("4711\n/data\n1790000000\n").unwrap();
    assert_eq!((young.port, young.ready), (None, false));
    assert!(PidFile::parse("").is_none());
}
