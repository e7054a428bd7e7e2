"""No secret of a command line reaches a trace; what is none stays readable."""

import pytest

from tracekit.probes.redaction import redact

SECRET = "hunter2"


@pytest.mark.parametrize(
    "word",
    [
        "--api-token=hunter2",
        "--token=x,,hunter2",
        "--pass=hunter2",
        "SSHPASS=hunter2",
        "user=me,pwd=hunter2",
        "file=a,auth=hunter2",
        "-password=hunter2",
        "secret,id=a,data=hunter2,format=raw",
        "secret,id=a,data=x,,hunter2 hunter2,format=raw",
        '{"qom-type":"secret","id":"a","data":"hunter2"}',
        '{"qom-type": "secret", "data": "a,\\"hunter2"}',
        "port=1,password=x hunter2",
        "port=1,password=x,,hunter2,tls-port=2",
        "file.driver=https,file.url=https://me:hunter2@host/x",
        "name=opt/com.coreos/config,string={a:1,b:hunter2}",
        "type=11,value=io.systemd.credential:passwd.hashed-password.root=hunter2",
        "type=11,value=io.systemd.credential.binary:x=hunter2",
        "root=/dev/vda ro rescue_password=hunter2 quiet",
        "mysql --password hunter2 -h x",
        "curl -H 'Authorization: hunter2'",
        "PGPASSWORD=hunter2",
        "PASSPHRASE='x,hunter2' gpg",
        "driver=luks,key-secret=hunter2",
        "psk=hunter2",
    ],
)
def test_a_secret_with_a_name_is_hidden(word: str) -> None:
    hidden = redact(["vmm", "-x", word])
    assert SECRET not in hidden[2]
    assert "***" in hidden[2]


@pytest.mark.parametrize("option", ["--password", "--api-key", "-token", "--vnc-passwd", "--PSK"])
def test_the_word_after_an_option_for_secrets_is_hidden(option: str) -> None:
    assert redact(["vmm", option, SECRET, "x"]) == ["vmm", option, "***", "x"]
    assert redact(["vmm", option, "-m", "1G"]) == ["vmm", option, "-m", "1G"]


def test_what_is_no_secret_stays() -> None:
    plain = ["qemu", "-m", "size=1G,slots=2", "-drive", "file=a.img,format=raw", "-k", "de", "-smp", "4"]
    plain += ["-netdev", "user,id=n,hostfwd=tcp:127.0.0.1:22-:22", "-qmp", "unix:/run/qmp,server,nowait"]
    plain += ["-vnc", ":1", "-append", "console=ttyS0 root=/dev/vda", "https://host/path?x=1"]
    assert redact(plain) == plain
