"""The command line of the client, `python -m hfa.network.client`.

    python -m hfa.network.client --prompt "The capital of France is"
    python -m hfa.network.client --context-file book.txt --prompt "The secret number is " --max-tokens 8 --stream

The miner is looked up on the local subnet unless --url and --receiver name one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from hfa.errors import HFAError, NetworkError
from hfa.network.bittensor import open_hotkey
from hfa.network.client import Answer, HFAClient, Sampling
from hfa.network.local import (
    LocalNetworkConfig,
    add_subnet_flags,
    add_wallet_flags,
    config_from_yaml,
    register_command,
    wallet_from,
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.prompt is None and not arguments.statistics:
        parser.error("give --prompt, --statistics, or both")
    try:
        config = config_from_yaml(folder=arguments.folder, netuid=arguments.netuid)
        wallet = wallet_from(arguments, config)
        command = register_command(config, wallet, validator=True)
        signer = open_hotkey(wallet, f"make and register one with `{command}`")
        url, receiver = _miner(arguments, config)
        with HFAClient(signer, url=url, receiver=receiver, timeout_s=arguments.timeout) as client:
            if arguments.prompt is not None:
                _ask(client, arguments)
            if arguments.statistics:
                _say(json.dumps(client.statistics(), indent=2, ensure_ascii=False))
    except HFAError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hfa.network.client", description="Ask a miner; requests are signed."
    )
    asked = parser.add_argument_group("what is asked (at least one of --prompt and --statistics)")
    asked.add_argument("--prompt", help="the text to continue")
    asked.add_argument("--context-file", type=Path, metavar="F", help="a text to put right before the prompt")
    asked.add_argument("--statistics", action="store_true", help="print the miner's statistics (after the answer)")
    asked.add_argument("--stream", action="store_true", help="print the answer as it comes")
    sampling = parser.add_argument_group("how it is answered (default: as the miner decides)")
    sampling.add_argument("--model", help="the architecture: hfa, simplemind, ...")
    sampling.add_argument("--max-tokens", type=int)
    sampling.add_argument("--temperature", type=float, help="0 is greedy")
    sampling.add_argument("--top-k", type=int)
    sampling.add_argument("--top-p", type=float)
    sampling.add_argument("--min-p", type=float)
    sampling.add_argument("--repetition-penalty", type=float)
    sampling.add_argument("--seed", type=int)
    sampling.add_argument("--stop", action="append", help="end the answer before this text; may be repeated")
    sampling.add_argument("--logprobs", type=int, metavar="N", help="how likely each token was, and N of the likeliest")
    sampling.add_argument("--deadline-s", type=float, help="seconds after which the answer ends as it is")
    miner = parser.add_argument_group("who is asked, and by whom")
    miner.add_argument("--url", help="http://host:port (default: as published on the local subnet)")
    miner.add_argument("--receiver", help="the miner's hotkey (default: that of the local subnet, at --url)")
    miner.add_argument("--timeout", type=float, default=600.0, help="seconds of silence to bear (default: %(default)g)")
    add_wallet_flags(miner, name="validator", hotkey="default")
    add_subnet_flags(miner)
    return parser


def _miner(arguments: argparse.Namespace, config: LocalNetworkConfig) -> tuple[str, str]:
    """Where the miner is, and its hotkey."""
    if arguments.url and arguments.receiver:
        return arguments.url, arguments.receiver
    serving = {one.hotkey: one.endpoint for one in config.file().read() if one.endpoint}
    where = f"netuid {config.netuid} in {config.file().path}"
    if arguments.url:  # of several, the one that is there
        with contextlib.suppress(ValueError):  # of what is no address, which the client says
            at = urlsplit(arguments.url).netloc
            serving = {hotkey: endpoint for hotkey, endpoint in serving.items() if endpoint == at} or serving
    if arguments.receiver is None and len(serving) != 1:
        hotkeys = f" ({', '.join(serving)})" if serving else ""
        remedy = (
            "name one with --receiver" if serving else "start one with `python mine.py`, or give --url and --receiver"
        )
        raise NetworkError(f"{len(serving)} miners are published on {where}{hotkeys}; {remedy}.")
    receiver = arguments.receiver or next(iter(serving))
    if arguments.url is None and receiver not in serving:
        raise NetworkError(f"--receiver: {receiver} publishes no endpoint on {where}; give its --url.")
    return arguments.url or f"http://{serving[receiver]}", receiver


def _ask(client: HFAClient, arguments: argparse.Namespace) -> None:
    prompt = _context(arguments.context_file) + arguments.prompt
    given = {name: getattr(arguments, name) for name in Sampling.__annotations__}
    sampling = cast(Sampling, {name: value for name, value in given.items() if value is not None})
    began = time.perf_counter()
    if arguments.stream:
        stream = client.stream(prompt, **sampling)
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
        _say("")
        answer = stream.answer
    else:
        answer = client.generate(prompt, **sampling)
        _say(answer.text)
    if answer is not None:
        for told in answer.logprobs or ():
            others = ", ".join(f"{other.token!r} {other.logprob:.2f}" for other in told.top_logprobs)
            _say(f"{told.token!r} {told.logprob:.2f}" + (f" ({others})" if others else ""))
        sys.stderr.write(f"{_timings(answer, time.perf_counter() - began)}\n")


def _context(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise NetworkError(f"--context-file: {path} cannot be read as text ({error}).") from error


def _timings(answer: Answer, round_trip_s: float) -> str:
    usage = f"{answer.usage.get('prompt_tokens')} tokens in, {answer.usage.get('completion_tokens')} out"
    measured = {**answer.timings, "round_trip_s": round_trip_s}
    timings = ", ".join(f"{name} {value:.3g}" for name, value in measured.items() if value is not None)
    return f"[{answer.model} ({answer.reason}), {usage}, {answer.finish_reason}; {timings}]"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
