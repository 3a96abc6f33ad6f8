//! Programs by hand, against what Python's machine would make of them.

use super::*;

/// A program of these parts between the protocol and the end.
fn run(parts: &[&[u8]]) -> Read<BTreeMap<String, View>> {
    read(&[&b"\x80\x02"[..], &parts.concat(), b"."].concat())
}

fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// A view of storage 7 with this offset and these tuples.
fn tensor(offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let id = [&b"("[..], &text("storage"), b"ctorch\nHalfStorage\n", &text("7"), &text("cpu"), b"K\x63tQ"];
    [&b"ctorch._utils\n_rebuild_tensor_v2\n("[..], &id.concat(), offset, shape, strides, b"\x89NtR"].concat()
}

fn view(offset: usize, shape: &[usize], strides: &[usize]) -> View {
    let (storage, key) = ("HalfStorage".to_owned(), "7".to_owned());
    View { storage, key, offset, shape: shape.to_vec(), strides: strides.to_vec() }
}

#[test]
fn tensors_by_either_instruction_and_numbers_of_every_length() {
    let one = tensor(b"K\x05", b"K\x02K\x03\x86", b"K\x03K\x01\x86");
    let two = tensor(b"\x8a\x05\x00\x00\x00\x00\x01", b"M\x01\x02\x85", b"J\x01\x00\x00\x00\x85");
    let made = run(&[b"}q\x00", &text("one"), &one, b"s(", &text("two"), &two, b"u"]).unwrap();
    assert_eq!(made["one"], view(5, &[2, 3], &[3, 1]));
    assert_eq!(made["two"], view(1 << 32, &[0x201], &[1]));
    assert_eq!(run(&[b"}"]).unwrap().len(), 0);
}

#[test]
fn a_dictionary_that_changes_after_it_was_remembered_is_one_dictionary() {
    let scalar = tensor(b"K\x00", b")", b")");
    let made = run(&[b"ccollections\nOrderedDict\n)Rq\x00(", &text("a"), &scalar, b"u0h\x00"]);
    assert!(made.is_err(), "no instruction to drop the top: the writer needs none");
    let made = run(&[b"ccollections\nOrderedDict\n)Rq\x00h\x00", &text("a"), &scalar, b"sh\x00", b"}", b"b"])
        .unwrap();
    assert_eq!(made["a"], view(0, &[], &[]));
}

#[test]
fn a_parameter_is_its_tensor() {
    let inner = tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85");
    let parameter = [&b"ctorch._utils\n_rebuild_parameter\n"[..], &inner, b"\x88}\x87R"].concat();
    assert_eq!(run(&[b"}", &text("p"), &parameter, b"s"]).unwrap()["p"], view(0, &[1], &[1]));
}

#[test]
fn everything_else_is_refused_in_words() {
    let good = tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85");
    let call = |function: &str| [function.as_bytes(), b")R"].concat();
    let deep: Vec<u8> = [&b"("[..], &b"K\x01".repeat(9), b"t"].concat();
    let long_key =
        [&b"("[..], &text("storage"), b"ctorch\nHalfStorage\n", &text(&"7".repeat(65)), b"tQ"].concat();
    for (parts, said) in [
        (vec![], "an empty stack"),
        (vec![b"K\x05".to_vec()], "5 at the top"),
        (vec![b"}K\x01".to_vec(), good.clone(), b"s".to_vec()], "1 as a name"),
        (vec![b"}".to_vec(), text("a"), b"N".to_vec(), b"s".to_vec()], "under \"a\""),
        (
            vec![b"}(".to_vec(), text("a"), good.clone(), text("a"), good.clone(), b"u".to_vec()],
            "\"a\" twice",
        ),
        (vec![b"}(".to_vec(), text("a"), b"u".to_vec()], "without a value"),
        (vec![b"K\x01(K\x01K\x02u".to_vec()], "no dictionary"),
        (vec![b"K\x05K\x01b".to_vec()], "attributes for 5"),
        (vec![call("cos\nsystem\n")], "a call of os.system"),
        (vec![call("cbuiltins\neval\n")], "a call of builtins.eval"),
        (vec![b"K\x01)R".to_vec()], "no function"),
        (vec![call("ctorch._utils\n_rebuild_tensor_v2\n")], "another form"),
        (vec![call("ctorch._utils\n_rebuild_parameter\n")], "no tensor"),
        (vec![b"N\x85Q".to_vec()], "another form"),
        (vec![b"NQ".to_vec()], "another form"),
        (vec![tensor(b"K\x00", &deep, &deep)], "9 dimensions"),
        (vec![long_key], "long name"),
        (vec![tensor(b"J\xff\xff\xff\xff", b")", b")")], "out of range"),
        (vec![tensor(b"K\x00", b"N\x85", b")")], "as a size"),
        (vec![b"h\x00".to_vec()], "never set"),
        (vec![b"}q\x01".to_vec()], "memo 1 after 0"),
        (vec![b"}r\xff\xff\xff\xff".to_vec()], "after 0"),
        (vec![b"t".to_vec()], "no mark"),
        (vec![b"N\x87".to_vec()], "an empty stack"),
        (vec![b"X\xff\xff\xff\xff".to_vec()], "the end"),
        (vec![b"X\x01\x00\x00\x00\xff".to_vec()], "utf-8"),
        (vec![b"cos\nsystem".to_vec()], "the end"),
        (vec![b"\x8a\x09123456789".to_vec()], "9 bytes"),
        (vec![b"\x80\x04".to_vec()], "protocol 4"),
        (vec![b"i".to_vec()], "0x69"),
        (vec![b"o".to_vec()], "0x6f"),
        (vec![b"\x81".to_vec()], "0x81"),
        (vec![b"\x82\x01".to_vec()], "0x82"),
    ] {
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let got = run(&parts).unwrap_err();
        assert!(got.contains(said), "expected {said}, got {got}");
    }
    assert!(read(b"").is_err() && read(b"\x80\x02}").is_err(), "no end");
}
