"""Does training on a mask and its complement (anti-masking) pay at equal compute?

Question: B/2 rows, each under a mask and under the mask's complement, against B rows under one mask each: gradient variance at the
same weights, final bound, generated passages.
The paper (arXiv 2602.21472) trains with anti-masking and reports lower variance. Theory: both views are unbiased, their errors
are negatively correlated, but half as many different items are seen.
Set-up: experiments/common.py; width 64, depth 2, 1.5M tokens in steps of 16 rows, six seeds.
On two cores at half speed about 5 minutes:  python experiments/complement.py      writes results/complement.json and .png
"""
import argparse

import common

ARMS = {"one mask": False, "mask and complement": True}
SAMPLER = dict(sampler="entropy", budget=0.1, temperature=0.7)


def study(folder, tokens=1_500_000, seeds=(0, 1, 2, 3, 4, 5), **few):
    views = {False: dict(views=[dict(complement=v, **few) for v in ARMS.values()])}   # gradients of both at one mask's weights
    configs = [common.base(tokens=tokens, complement=c, seed=s, samplers=[{**SAMPLER, **few}], **views.get(c, {})) for c in ARMS.values() for s in seeds]
    results, out = common.run_all(folder / "complement-runs.json", configs), {}
    variance = common.relative([r["noise"] for r in results[:len(seeds)]])
    for n, name in enumerate(ARMS):
        mine = results[n * len(seeds):(n + 1) * len(seeds)]
        bound, error = common.bound_and_error(mine)
        row = dict(bound=bound, stderr=error, gradient_variance=variance[n][0], gradient_variance_stderr=variance[n][1])
        for what in ("grammatical", "consistent"):
            row[what], row[f"{what}_stderr"] = common.spread([r["samples"][0]["passages"][what][0] for r in mine])
        out[name] = row
    return dict(tokens=tokens, seeds=len(seeds), arms=out)


def draw(result):
    figure, panels = common.figure(3)
    for panel, what, title in zip(panels, ("gradient_variance", "bound", "consistent"),
                                  ("gradient variance, one mask = 1", "bound, nats a token", "passages consistent")):
        rows = result["arms"]
        error = [r.get(f"{what}_stderr", r["stderr"]) for r in rows.values()]
        panel.bar(list(rows), [r[what] for r in rows.values()], yerr=error, color=["tab:blue", "tab:orange"], capsize=4)
        low = min(r[what] - 4 * e for r, e in zip(rows.values(), error))
        panel.set(title=title, ylim=(max(0, low) if what == "bound" else 0, None))
    return figure


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="one seed, few tokens; writes to a temporary folder")
    quick = args.parse_args().quick
    result = study(common.results_folder(quick), **(dict(tokens=20_000, seeds=(0,), n=16) if quick else {}))
    for name, r in result["arms"].items():
        print(f"{name:20} gradient variance {r['gradient_variance']:.2f} ± {r['gradient_variance_stderr']:.2f}, bound {r['bound']:.4f} ± {r['stderr']:.4f}, "
              f"grammatical {100 * r['grammatical']:.0f} ± {100 * r['grammatical_stderr']:.0f}%, "
              f"consistent {100 * r['consistent']:.0f} ± {100 * r['consistent_stderr']:.0f}%")
    if not quick:
        common.finish("complement", result, draw(result))


if __name__ == "__main__":
    main()
