use super::*;

async fn pumped(input: &[u8]) -> Vec<String> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink: LineSink = {
        let seen = seen.clone();
        Arc::new(move |_, line| seen.lock().unwrap().push(line.to_owned()))
    };
    Lines::open(&Output::Lines(sink)).unwrap().pump(Source::Stdout, input).await;
    seen.lock().unwrap().clone()
}

#[tokio::test]
async fn lines_are_passed_on_one_by_one() {
    assert_eq!(pumped(b"one\ntwo\r\n\nlast").await, ["one", "two", "", "last"]);
    assert_eq!(pumped(b"").await, [""; 0]);
}

#[tokio::test]
async fn a_line_without_end_is_cut() {
    let pieces = pumped(&vec![b'x'; 3 * MAX_LINE + 1]).await;
    assert_eq!(pieces.concat().len(), 3 * MAX_LINE + 1);
    assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() <= 2 * MAX_LINE));
}

#[tokio::test]
async fn the_last_lines_are_remembered() {
    let lines = Lines::open(&Output::Null).unwrap();
    let input: String =
        (0..TAIL + 5).fold(String::new(), |all, number| all + &format!("{number}\n"));
    lines.clone().pump(Source::Stderr, input.as_bytes()).await;
    assert_eq!(lines.tail().first().unwrap(), "5");
    assert_eq!(lines.tail().len(), TAIL);
}
