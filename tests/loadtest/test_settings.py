"""Settings from the environment: a wrong one is named, with its value and what it must be."""

import pytest

from loadtest.settings import SettingsError, read

RIGHT = {
    "LOCUST_HOST": "http://nginx/",
    "LOADTEST_MODULE": "loadtest.demo",
    "LOADTEST_SHAPE": "closed",
    "LOADTEST_USERS": "50",
    "LOADTEST_RATE": "200",
    "LOADTEST_SECONDS": "30",
    "LOADTEST_WARMUP_SECONDS": "3",
    "LOADTEST_PROCESSES": "1",
    "SLO_P50_MS": "100",
    "SLO_P95_MS": "300",
    "SLO_P99_MS": "1000",
    "SLO_ERROR_SHARE": "0.001",
    "SLO_MIN_RPS": "50",
}


def test_right_settings_are_read() -> None:
    settings = read(RIGHT)
    assert (settings.target, settings.users, settings.warmup_seconds) == ("http://nginx", 50, 3)
    assert (settings.objectives.error_share, settings.objectives.rate) == (0.001, None)


def test_the_rate_is_an_objective_in_the_shape_rate_only() -> None:
    assert read(RIGHT | {"LOADTEST_SHAPE": "rate"}).objectives.rate == 200


@pytest.mark.parametrize("name", RIGHT)
def test_a_missing_setting_is_named_and_has_no_second_home(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name} is not set: it must be .*; set it in .env or on the command"):
        read({other: value for other, value in RIGHT.items() if other != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOCUST_HOST", "nginx"),
        ("LOCUST_HOST", "ftp://nginx"),
        ("LOCUST_HOST", "http://nginx:99999"),
        ("LOADTEST_SHAPE", "step"),
        ("LOADTEST_USERS", "0"),
        ("LOADTEST_USERS", "many"),
        ("LOADTEST_RATE", "1.5"),
        ("LOADTEST_SECONDS", "30s"),
        ("LOADTEST_WARMUP_SECONDS", "-1"),
        ("LOADTEST_PROCESSES", "65"),
        ("SLO_P50_MS", "nan"),
        ("SLO_P95_MS", "inf"),
        ("SLO_ERROR_SHARE", "1%"),
        ("SLO_ERROR_SHARE", "1.5"),
        ("SLO_MIN_RPS", "-1"),
    ],
)
def test_a_wrong_value_is_shown_with_what_it_must_be(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as error:
        read(RIGHT | {name: value})
    message = str(error.value)
    assert message.startswith(f"{name}={value}: it must be ")
    assert message.count("\n") == 0, message


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        read(RIGHT | {"LOADTEST_USERS": "0", "SLO_P99_MS": "x"})
    assert [line.partition("=")[0] for line in str(error.value).splitlines()] == ["LOADTEST_USERS", "SLO_P99_MS"]


def test_a_throughput_above_the_arrival_rate_can_never_be_met() -> None:
    with pytest.raises(SettingsError, match="SLO_MIN_RPS=50 can never be met at LOADTEST_RATE=20"):
        read(RIGHT | {"LOADTEST_SHAPE": "rate", "LOADTEST_RATE": "20"})
