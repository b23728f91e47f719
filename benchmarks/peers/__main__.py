"""Our engine beside every peer that can be installed: one table, and one line of JSON.

    pip install '.[peers]'
    python -m benchmarks.peers [--pairs 3] [--samples 1024] [--only flower research_loop]

A ratio is the peer's seconds over ours. A peer that is not installed, or does not run here, is null with a reason; one
that fails or has not done the same work too, and the command ends with status 1. With the defaults it takes about 7
minutes on two idle cores.
"""

from __future__ import annotations

import json
import sys

from benchmarks.peers import flower, hivemind, measure, research_loop, torchslicer

COMPARISONS = {
    "flower": flower.compare,
    "torchslicer": torchslicer.compare,
    "hivemind": hivemind.compare,
    "research_loop": research_loop.compare,
}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.set_defaults(pairs=3, rounds=3)
    options = parser.parse_args()
    try:
        work = measure.work_of(options)
    except ValueError as error:
        parser.error(str(error))
    results, lines, failed = {}, {}, False
    for name in options.only:
        print(name, file=sys.stderr)
        try:
            results[name] = COMPARISONS[name](work, options.pairs)
            lines[name] = results[name].pop("rows")
        except measure.MissingError as error:
            print(f"{name}: {error}")
            results[name] = measure.missing(error)
        except RuntimeError as error:  # the others' figures stand
            print(f"{name} failed: {error}", file=sys.stderr)
            results[name], failed = measure.missing(error), True
    measure.table(f"{work.samples} samples a round in batches of {work.batch}, {work.cores} cores", lines)
    for name, result in results.items():
        if result["steady"] is not None:
            print(f"{name}: its round over ours {result['steady']:.2f}, first round {result['first_round']:.2f}")
        if "steady_split" in result:
            print(
                f"{name}: its round over our split one {result['steady_split']:.2f},"
                f" first round {result['first_round_split']:.2f}"
            )
    print(json.dumps(results))
    sys.exit(failed)


if __name__ == "__main__":
    main()
