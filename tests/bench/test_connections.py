from bench.experiments.connections import NGINX, STRAIGHT, WITH, WITHOUT, Round, comparisons


def test_what_an_idle_client_takes_is_what_came_on_top() -> None:
    through = Round(before=10_000_000, holding=11_000_000, taken={WITH: [3.0] * 100, WITHOUT: [2.0] * 100})
    straight = Round(before=70_000_000, holding=80_000_000, taken={WITH: [1.0] * 100, WITHOUT: [2.0] * 100})
    found = {each.name: each.figures.median for each in comparisons({NGINX: [through], STRAIGHT: [straight]}, 1000)}
    assert found[f"memory of an idle client, {NGINX} to {STRAIGHT}"] == 0.1
    assert found[f"memory of an idle client with {STRAIGHT}"] == 10  # kB
    assert found[f"p99 of an active client with {NGINX}, {WITH} to {WITHOUT}"] == 1.5
    assert found[f"p50 of an active client with {STRAIGHT}, {WITH} to {WITHOUT}"] == 0.5
