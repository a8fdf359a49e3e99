use axum::http::HeaderName;

use super::*;

fn headers(name: &'static str, value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
}

#[test]
fn timeouts_are_read_as_javascript_reads_them() {
    let read = |value| wait(&headers("timeout-seconds", value), Duration::from_secs(60));
    let seconds = |value| read(value).ok().map(|wait| wait.as_secs());
    assert_eq!(wait(&HeaderMap::new(), Duration::from_secs(60)).ok().unwrap().as_secs(), 60);
    for (value, expected) in
        [("", 60), ("0", 0), ("-0", 0), ("1", 1), ("10abc", 10), ("1.5", 1), ("600", 600)]
    {
        assert_eq!(seconds(value), Some(expected), "{value}");
    }
    let text = |value| match read(value) {
        Err(HttpError::Text(StatusCode::BAD_REQUEST, text)) => text,
        other => panic!("{value}: {other:?}"),
    };
    assert_eq!(text("-1"), "Timeout seconds must be greater than 0");
    assert_eq!(text("601"), "Timeout seconds must be less than 600");
    assert_eq!(text("99999999999999999999"), "Timeout seconds must be less than 600");
    assert!(matches!(read("abc"), Err(HttpError::Internal)));
}

#[test]
fn a_reader_begins_after_the_record_that_it_had_last() {
    let after = |value| start(&headers("last-event-id", value));
    assert_eq!(after("0"), Start::At(1));
    assert_eq!(after("12,3,400"), Start::At(13));
    assert_eq!(after("12-0"), Start::At(13));
    assert_eq!(after("x"), Start::At(0));
    assert_eq!(after("-1"), Start::At(0));
    assert_eq!(start(&headers("x-trigger-stream-start", "latest")), Start::Latest);
    assert_eq!(start(&HeaderMap::new()), Start::At(0));
    let mut both = headers("x-trigger-stream-start", "latest");
    both.insert("last-event-id", HeaderValue::from_static("4"));
    assert_eq!(start(&both), Start::At(5));
}

#[test]
fn only_reading_and_inputs_are_for_browsers() {
    for (path, expected) in [
        ("/realtime/v1/runs/run_1", true),
        ("/realtime/v1/streams/run_1/key", true),
        ("/realtime/v1/streams/run_1/input", true),
        ("/realtime/v1/streams/run_1/input/approval", true),
        ("/realtime/v1/streams/run_1/self/key", false),
        ("/realtime/v1/streams/run_1/self/key/append", false),
    ] {
        assert_eq!(is_for_browsers(path), expected, "{path}");
    }
}

#[test]
fn a_record_is_as_long_as_s2_takes_it_or_refused_with_figures() {
    let built = record(b"{\"i\":0}", Some("part-0")).unwrap();
    assert_eq!(&built[..], br#"{"data":"{\"i\":0}","id":"part-0"}"#);
    let around = r#"{"data":"","id":"p"}"#.len() + 8;
    assert!(record(&vec![b'x'; MAX_RECORD - around], Some("p")).is_ok());
    match record(&vec![b'x'; MAX_RECORD - around + 1], Some("p")) {
        Err(HttpError::NotOk(StatusCode::PAYLOAD_TOO_LARGE, why)) => {
            assert!(why.starts_with("Record metered size 1048577 bytes exceeds"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(part_id().len(), 7);
}
