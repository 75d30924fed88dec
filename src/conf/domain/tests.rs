//! The model as a whole: its canonical form, and what is refused.

use super::*;

fn written(text: &str) -> String {
    Domain::parse(text, Form::INACTIVE).unwrap().to_xml(Form::INACTIVE)
}

#[test]
fn a_definition_comes_back_in_canonical_form() {
    let text = "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:commandline>\
      <qemu:arg value='-x'/></qemu:commandline><os><boot dev='hd'/><type>hvm</type></os><memory unit='GiB'>1</memory>\
      <name>a&amp;b</name><metadata><x:y xmlns:x='urn:x' a='&quot;'><x:z>  t </x:z></x:y><none/></metadata>\
      <features><pae/><acpi/><kvm><hidden state='on'/></kvm></features><bogus/></domain>";
    assert_eq!(
        written(text),
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>a&amp;b</name>
  <uuid>00000000-0000-0000-0000-000000000000</uuid>
  <metadata>
    <x:y xmlns:x=\"urn:x\" a=\"&quot;\">
      <x:z>  t </x:z>
    </x:y>
  </metadata>
  <memory unit='KiB'>1048576</memory>
  <currentMemory unit='KiB'>0</currentMemory>
  <vcpu placement='static'>1</vcpu>
  <os>
    <type>hvm</type>
    <boot dev='hd'/>
  </os>
  <features>
    <acpi/>
    <pae/>
    <kvm>
      <hidden state='on'/>
    </kvm>
  </features>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <qemu:commandline>
    <qemu:arg value='-x'/>
  </qemu:commandline>
</domain>
"
    );
}

#[test]
fn what_is_no_definition_is_refused_in_libvirts_words() {
    use crate::conf::ErrorKind::*;
    let os = "<os><type>hvm</type></os>";
    for (text, kind, message) in [
        ("<domain/>".to_owned(), NoName, ""),
        ("<foo/>".to_owned(), Xml, "expecting root element of 'domain', not 'foo'"),
        ("<domain type='foo'><name>x</name></domain>".to_owned(), Unsupported, "invalid domain type foo"),
        ("<domain><name>x</name></domain>".to_owned(), Internal, "missing domain type attribute"),
        ("<domain type='kvm'><name>x</name></domain>".to_owned(), Xml, "an os <type> must be specified"),
        (
            "<domain type='kvm'><name>x</name><os><type>xx</type></os></domain>".to_owned(),
            Unsupported,
            "unknown OS type 'xx'",
        ),
        (
            "<domain type='kvm'><name>x</name><os><type arch='foo'>hvm</type></os></domain>".to_owned(),
            Unsupported,
            "Unknown architecture foo",
        ),
        (
            format!("<domain type='kvm'><name>x</name><uuid>zz</uuid>{os}</domain>"),
            Internal,
            "malformed uuid element",
        ),
        (
            format!("<domain type='kvm'><name>x</name><memory unit='foo'>1</memory>{os}</domain>"),
            InvalidArg,
            "unknown suffix 'foo'",
        ),
        (
            format!("<domain type='kvm'><name>x</name>{os}<on_reboot>foo</on_reboot></domain>"),
            Unsupported,
            "unknown on_reboot action: foo",
        ),
        (
            format!("<domain type='kvm'><name>x</name>{os}<features><foo/></features></domain>"),
            Unsupported,
            "unexpected feature 'foo'",
        ),
        (
            format!("<domain type='kvm'><name>x</name>{os}<vcpu cpuset='x'>1</vcpu></domain>"),
            InvalidArg,
            "Failed to parse bitmap 'x'",
        ),
    ] {
        let error = Domain::parse(&text, Form::INACTIVE).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (kind, message), "{text}");
    }
}
