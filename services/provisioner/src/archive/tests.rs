use std::io::Write;

use tempfile::TempDir;

use super::*;

const SMALL: Limits = Limits { packed: 64 * 1024, unpacked: 4096, entries: 8 };

/// One entry as raw as tar allows, so that evil names survive.
fn entry(kind: EntryType, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    entry(EntryType::Regular, name, "", content)
}

fn link(name: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Symlink, name, target, b"")
}

struct Unpacked {
    dir: TempDir,
    outcome: Result<(), ArchiveError>,
}

impl Unpacked {
    fn into(&self) -> PathBuf {
        self.dir.path().join("in")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.into().join(name)).unwrap()
    }
}

fn unpack_bytes(bytes: &[u8]) -> Unpacked {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("archive"), bytes).unwrap();
    let outcome = extract(&dir.path().join("archive"), &dir.path().join("in"), SMALL);
    Unpacked { dir, outcome }
}

fn unpack_entries(entries: &[Vec<u8>]) -> Unpacked {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 1024, 0);
    unpack_bytes(&bytes)
}

#[track_caller]
fn check_refused(entries: &[Vec<u8>], expected: &str) {
    let unpacked = unpack_entries(entries);
    let error = unpacked.outcome.as_ref().expect_err("it was accepted").to_string();
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    let beside = fs::read_dir(unpacked.dir.path()).unwrap().count();
    assert_eq!(beside, 2, "something was written beside the directory");
}

#[test]
fn files_directories_and_links_inside_are_unpacked() {
    let unpacked = unpack_entries(&[
        entry(EntryType::Directory, "./modules/", "", b""),
        file("./modules/a/main.tf", b"one"),
        link("modules/b", "a"),
        link("modules/a/up", "../../main.tf"),
        file("main.tf", b"two"),
        entry(EntryType::Link, "copy.tf", "./main.tf", b""),
    ]);
    unpacked.outcome.as_ref().unwrap();
    assert_eq!(unpacked.read("modules/b/main.tf"), "one");
    assert_eq!(unpacked.read("modules/a/up"), "two");
    assert_eq!(unpacked.read("copy.tf"), "two");
}

#[test]
fn zstd_and_gzip_are_recognised_by_their_content() {
    let mut tar = file("main.tf", b"packed");
    tar.resize(tar.len() + 1024, 0);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    for packed in [zstd::encode_all(&tar[..], 1).unwrap(), gzip.finish().unwrap()] {
        let unpacked = unpack_bytes(&packed);
        unpacked.outcome.as_ref().unwrap();
        assert_eq!(unpacked.read("main.tf"), "packed");
    }
}

#[test]
fn paths_that_leave_the_directory_are_refused_by_name() {
    check_refused(&[file("../evil", b"x")], r#""../evil" leaves"#);
    check_refused(&[file("a/../../evil", b"x")], r#""a/../../evil" leaves"#);
    check_refused(&[file("/etc/evil", b"x")], r#""/etc/evil" has an absolute path"#);
}

#[test]
fn links_that_leave_the_directory_are_refused_by_name() {
    check_refused(&[link("out", "..")], r#""out" links to "..""#);
    check_refused(&[link("out", "/etc/passwd")], r#""out" links to "/etc/passwd""#);
    check_refused(&[link("a/out", "../../x")], r#""a/out" links to "../../x""#);
    let hard = entry(EntryType::Link, "out", "../archive", b"");
    check_refused(&[hard], r#""out" links to "../archive""#);
    let hard = entry(EntryType::Link, "out", "/etc/passwd", b"");
    check_refused(&[hard], r#""out" links to "/etc/passwd""#);
}

#[test]
fn links_cannot_be_chained_out_of_the_directory() {
    // Each link stays inside on paper; together they would climb above it.
    check_refused(&[link("a/b/root", "../.."), link("out", "a/b/root/..")], r#""out" links to"#);
    check_refused(&[link("a", "b"), file("a/evil", b"x")], r#""a/evil" lies behind the link "a""#);
    check_refused(
        &[link("a", "b"), entry(EntryType::Link, "c", "a/x", b"")],
        r#""c" is a hard link to "a/x""#,
    );
    check_refused(
        &[link("a", "b"), entry(EntryType::Link, "c", "a", b"")],
        r#""c" is a hard link to "a""#,
    );
}

#[test]
fn devices_and_pipes_are_refused_by_name() {
    for (kind, name) in [
        (EntryType::Char, "character device"),
        (EntryType::Block, "block device"),
        (EntryType::Fifo, "named pipe"),
        (EntryType::GNUSparse, "sparse file"),
    ] {
        check_refused(&[entry(kind, "dev/x", "", b"")], &format!(r#""dev/x" is a {name}"#));
    }
}

#[test]
fn a_long_name_is_held_to_the_same_rules() {
    let evil = format!("{}/../../../x", "a/".repeat(80));
    let extension = entry(EntryType::GNULongName, "././@LongLink", "", evil.as_bytes());
    check_refused(&[extension, file("innocent", b"x")], r#""a/a/a/"#);
    let record = "28 path=../../outside/name\n";
    let extension = entry(EntryType::XHeader, "pax", "", record.as_bytes());
    check_refused(&[extension, file("innocent", b"x")], "extended header before entry 1");
    let record = "27 path=../../outside/name\n";
    let extension = entry(EntryType::XHeader, "pax", "", record.as_bytes());
    check_refused(&[extension, file("innocent", b"x")], r#""../../outside/name" leaves"#);
}

#[test]
fn each_limit_names_the_entry_that_passed_it() {
    let files: Vec<_> = (0..9).map(|index| file(&format!("f{index}"), b"")).collect();
    check_refused(&files, r#"more than 8 entries (at entry "f8")"#);
    let big = [file("a", &[0; 4000]), file("b", &[0; 97])];
    check_refused(&big, r#"more than 4096 bytes (at entry "b")"#);
    let packed = unpack_bytes(&vec![0; 64 * 1024 + 1]).outcome.unwrap_err();
    assert_eq!(packed.to_string(), "the archive has 65537 bytes; at most 65536 are accepted");
}

#[test]
fn the_product_takes_20_000_entries_and_names_the_next() {
    let dir = tempfile::tempdir().unwrap();
    for (count, accepted) in [(20_000, true), (20_001, false)] {
        // The directory itself costs nothing to make, and counts.
        let mut bytes = entry(EntryType::Directory, "./", "", b"").repeat(count - 1);
        bytes.extend(file(&format!("f{count}"), b""));
        bytes.resize(bytes.len() + 1024, 0);
        let (archive, into) = (dir.path().join("archive"), dir.path().join(count.to_string()));
        fs::create_dir(&into).unwrap();
        fs::write(&archive, zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
        match extract(&archive, &into, Limits::TEMPLATE) {
            Ok(()) => assert!(accepted),
            Err(error) => {
                assert!(!accepted && error.to_string().contains("\"f20001\""), "{error}");
            }
        }
    }
}

/// 64 MiB of zeros in a few KiB, behind both compressions.
#[test]
fn a_bomb_ends_at_the_limit_and_names_its_entry_however_it_is_packed() {
    let mut header = tar::Header::new_ustar();
    header.set_path("bomb").unwrap();
    header.set_size(64 << 20);
    header.set_cksum();
    let whole = || io::Cursor::new(header.as_bytes().to_vec()).chain(io::repeat(0).take(64 << 20));
    let zstd = zstd::encode_all(whole(), 1).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    io::copy(&mut whole(), &mut gzip).unwrap();
    let limits = Limits { packed: 1 << 20, unpacked: 8 << 20, entries: 100 };
    for packed in [zstd, gzip.finish().unwrap()] {
        let dir = tempfile::tempdir().unwrap();
        let (archive, into) = (dir.path().join("archive"), dir.path().join("in"));
        fs::create_dir(&into).unwrap();
        fs::write(&archive, &packed).unwrap();
        let error = extract(&archive, &into, limits).unwrap_err().to_string();
        assert!(error.contains("8388608 bytes") && error.contains("\"bomb\""), "{error}");
        assert_eq!(fs::read_dir(&into).unwrap().count(), 0, "it was written");
    }
}

#[test]
fn a_small_archive_that_unpacks_to_much_ends_at_the_limit() {
    let mut tar = file("zeros", b"");
    let mut header = tar::Header::from_byte_slice(tar[..512].as_ref()).clone();
    header.set_size(1 << 40);
    header.set_cksum();
    tar = header.as_bytes().to_vec();
    tar.resize(60 * 1024, 0);
    let error = unpack_bytes(&tar).outcome.unwrap_err();
    assert!(matches!(error, ArchiveError::Unpacked { .. }), "{error}");
}

#[test]
fn an_archive_that_is_cut_off_or_no_archive_is_an_error() {
    let mut cut = file("main.tf", &[b'x'; 1000]);
    cut.truncate(700);
    let error = unpack_bytes(&cut).outcome.unwrap_err();
    assert!(matches!(error, ArchiveError::Malformed { .. }), "{error}");
    let error = unpack_bytes(&[b'?'; 2048]).outcome.unwrap_err();
    assert!(matches!(error, ArchiveError::Unreadable { .. }), "{error}");
}

#[test]
fn a_later_entry_replaces_a_file_but_never_a_directory() {
    let unpacked = unpack_entries(&[file("a", b"old"), file("a", b"new")]);
    assert_eq!(unpacked.read("a"), "new");
    check_refused(
        &[file("d/x", b""), link("d", "elsewhere")],
        r#""d" takes the place of a directory"#,
    );
}

proptest::proptest! {
    /// Whatever the bytes, reading ends with an answer and writes nothing outside.
    #[test]
    fn no_archive_panics_or_escapes(
        kind in proptest::sample::select(vec![b'0', b'1', b'2', b'3', b'5', b'L', b'K', b'x', b'g']),
        name in "[./a]{1,12}",
        target in "[./a]{0,12}",
        content in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
    ) {
        let first = entry(EntryType::new(kind), &name, &target, &content);
        let unpacked = unpack_entries(&[first, file("a/a", b"x"), file("b", b"y")]);
        let beside = fs::read_dir(unpacked.dir.path()).unwrap().count();
        proptest::prop_assert_eq!(beside, 2);
    }
}
