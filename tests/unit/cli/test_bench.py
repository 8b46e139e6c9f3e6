"""The options of `llava-gateway bench`."""

import pytest

from llava_gateway.cli.bench import make_parser


def test_share_of_images_is_read() -> None:
    assert make_parser().parse_args(["--images", "1", "--image-share", "0.7"]).image_share == 0.7
    assert make_parser().parse_args([]).image_share == 1


@pytest.mark.parametrize("value", ["1.1", "-0.1", "nan", "70%", ""])
def test_wrong_share_is_refused_with_an_example(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args([f"--image-share={value}"])
    assert ended.value.code == 2
    assert "is not a number from 0 to 1, such as 0.7" in capsys.readouterr().err
