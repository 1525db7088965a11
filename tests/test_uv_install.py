from uv_install import uv_variables


def test_uv_finds_packages_where_pip_is_told_to():
    settings = [
        ":env:.find-links='/wheels'",
        ":env:.disable-pip-version-check='1'",
        "global.extra-index-url='file:///one file:///two'",
        "global.find-links='/elsewhere /and-here'",
        "global.index-url='https://packages.example/simple'",
        "install.constraint='/etc/constraints.txt'",
    ]

    assert uv_variables(settings) == {
        "UV_FIND_LINKS": "/wheels",
        "UV_INDEX": "file:///one file:///two",
        "UV_DEFAULT_INDEX": "https://packages.example/simple",
        "UV_CONSTRAINT": "/etc/constraints.txt",
    }


def test_several_folders_of_wheels_are_separated_as_uv_does():
    assert uv_variables(["global.find-links='/one\\n/two'"]) == {"UV_FIND_LINKS": "/one,/two"}


def test_no_settings_of_pips_leave_uv_as_it_is():
    assert uv_variables([]) == {}
