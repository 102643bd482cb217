use super::*;

#[test]
fn scripts_run_by_seconds_or_by_a_word() {
    for text in
        ["0 */5 * * * *", "0 0 8-18/2 * JAN-jun MON,fri", "0 30 8 1 *", "@daily", "@every 1h30m"]
    {
        assert_eq!(check_script(text), Ok(()), "{text}");
    }
    for text in ["", "* * * *", "60 * * * * *", "0 0 0 0 * *", "0 0 9-5 * * *", "0 */0 * * * *"] {
        assert!(check_script(text).is_err(), "{text}");
    }
    for text in ["@sometimes", "@every", "@every 1", "@every h", "@every 1d", "0 0 0 1 FOO *"] {
        assert!(check_script(text).is_err(), "{text}");
    }
}
