"""What of the host a build sees: proxies, certificates, indexes; and what it never sees."""

from __future__ import annotations

from cadenza.fs.host import CERTIFICATES, from_settings

PIP_CONF = """\
[global]
index-url = https://user:pass@index.test/simple
extra-index-url = file:///opt/simple https://more.test/simple
find-links = /opt/wheels
cert = /etc/own.pem
[install]
trusted-host = index.test
"""

APT = """\
APT::Architecture "amd64";
Acquire "";
Acquire::http::Proxy "http://proxy.test:3128";
Acquire::https::CaInfo "/etc/ssl/own.pem";
Acquire::Check-Date "false";
Acquire::GzipIndexes "true";
DPkg::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb";
"""


def test_nothing_set_is_nothing_passed() -> None:
    host = from_settings({"HOME": "/root", "PATH": "/bin"})
    assert host.build_env() == {"DEBIAN_FRONTEND": "noninteractive", "APT_CONFIG": "/.cadenza/build/apt.conf"}
    assert "CaInfo" not in host.apt_conf(inside=True)


def test_certificates_are_named_by_their_place_inside() -> None:
    environ = {"SSL_CERT_FILE": "/gone.pem", "PIP_CERT": "/etc/own.pem"}
    host = from_settings(environ, exists=lambda path: path == "/etc/own.pem")
    env = host.build_env()
    assert host.certificates == "/etc/own.pem"
    assert {env[name] for name in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")} == {
        CERTIFICATES
    }
    assert "/etc/own.pem" not in "".join(env.values())
    assert f'Acquire::https::CaInfo "{CERTIFICATES}";' in host.apt_conf(inside=True)
    assert 'Acquire::https::CaInfo "/etc/own.pem";' in host.apt_conf(inside=False)


def test_certificates_in_pip_s_own_file_count() -> None:
    host = from_settings({}, (PIP_CONF,), exists=lambda path: path == "/etc/own.pem")
    assert host.certificates == "/etc/own.pem"


def test_indexes_pass_and_paths_do_not() -> None:
    host = from_settings(
        {"PIP_FIND_LINKS": "/opt/wheels", "PIP_DEFAULT_TIMEOUT": "9", "PIP_TIMEOUT": "60"}, (PIP_CONF,)
    )
    env = host.build_env()
    assert env["PIP_INDEX_URL"] == env["UV_DEFAULT_INDEX"] == "https://user:pass@index.test/simple"
    assert env["PIP_EXTRA_INDEX_URL"] == env["UV_INDEX"] == "https://more.test/simple"
    assert env["PIP_TRUSTED_HOST"] == "index.test" and env["PIP_TIMEOUT"] == "60"
    assert not any("file:" in value or "/opt" in value for value in env.values())
    only_files = from_settings({}, ("[global]\nextra-index-url = file:///opt/simple\n",))
    assert "PIP_EXTRA_INDEX_URL" not in only_files.build_env()


def test_the_environment_wins_over_files_and_broken_files_are_passed_over() -> None:
    host = from_settings({"PIP_INDEX_URL": "https://env.test/simple"}, ("not a configuration [", PIP_CONF))
    assert host.build_env()["PIP_INDEX_URL"] == "https://env.test/simple"


def test_proxies_pass_in_both_spellings() -> None:
    env = from_settings({"HTTPS_PROXY": "http://proxy.test:3128", "no_proxy": "localhost"}).build_env()
    assert env["https_proxy"] == env["HTTPS_PROXY"] == "http://proxy.test:3128"
    assert env["NO_PROXY"] == "localhost" and "http_proxy" not in env


def test_apt_takes_the_network_s_settings_and_no_hooks() -> None:
    host = from_settings({}, (), APT)
    outside, inside = host.apt_conf(inside=False), host.apt_conf(inside=True)
    for text in (outside, inside):
        assert 'Acquire::http::Proxy "http://proxy.test:3128";' in text and 'Acquire::Check-Date "false";' in text
        assert "Post-Invoke" not in text and "GzipIndexes" not in text
    assert 'CaInfo "/etc/ssl/own.pem"' in outside and "/etc/ssl/own.pem" not in inside


def test_passwords_of_proxies_and_indexes_are_known() -> None:
    found = from_settings(
        {
            "http_proxy": "http://me:p%40ss-word@proxy.test:3128",
            "https_proxy": "me:plain-word@proxy.test:3128",
            "PIP_INDEX_URL": "https://user:index-word@pip.test/simple",
            "no_proxy": "a.test,b.test",
        },
        apt_dump='Acquire::http::Proxy "http://me:apt-word@proxy.test:3128";\n',
    )
    assert set(found.passwords()) == {"p%40ss-word", "p@ss-word", "plain-word", "index-word", "apt-word"}
    assert from_settings({"http_proxy": "http://proxy.test:3128/a@b"}).passwords() == ()
