"""Time a clip on the page of `zs2 app` in a real Chromium, against `model(…)` in the same warm process, in turns.

    python benchmarks/page.py                   needs pip install -e '.[app,page]', and Chromium

Two times are measured in the browser from the press of the button: to the first preview, and to the finished clip.
They include previews, the transport and Chromium itself, which shares the machine. The CPU time of the process is
without Chromium, and says the same on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from common import add_json, bar, machine, ratio, run, save, sentence, spread

from zs2.checkpoints.hub import DEFAULT_MODEL

PROMPT = "panda face on a sky blue background"
BAR_FIRST, BAR_CLIP = 0.5, 1.10  # seconds beyond a step; relative to the call
WATCH = """() => {
  const go = [...document.querySelectorAll("button")].find((one) => one.textContent.trim() === "Make a clip");
  return new Promise((resolve) => {
    const start = performance.now();
    let first = null;
    const look = (changes, watch) => {
      const film = document.querySelector("#one .film canvas");
      const label = film?.getAttribute("aria-label") ?? "";
      if (first === null && label.startsWith("preview after step 1:")) first = performance.now() - start;
      if (first === null || !label.includes("frames,")) return;
      watch.disconnect();
      resolve([first / 1000, (performance.now() - start) / 1000]);
    };
    const one = document.querySelector("#one");
    new MutationObserver(look).observe(one, { subtree: true, childList: true, attributes: true });
    go.click();
  });
}"""


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--model", default=DEFAULT_MODEL)
    add_json(p)
    args = p.parse_args(argv)
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    from playwright.sync_api import sync_playwright

    from zs2.app.clip_options import Limits
    from zs2.app.server import serve
    from zs2.app.studio import Studio

    studio = Studio([args.model], Limits(), {})
    model = studio.loaded(studio.names[0]).model
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        close, address = serve(studio, Path(folder), "127.0.0.1", None, None, 2**20)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"))
        tab = browser.new_page()
        tab.goto(address)
        tab.get_by_role("button", name="Make a clip").wait_for()
        tab.get_by_label("prompt").fill(PROMPT)
        calls, firsts, clips, steps, work = [], [], [], [], []
        for i in range(args.rounds + 1):
            start, used, marks = time.perf_counter(), time.process_time(), []
            model(PROMPT, callback=lambda step, marks=marks: marks.append(time.perf_counter()))
            call = time.perf_counter() - start
            of_call, used = time.process_time() - used, time.process_time()
            first, clip = tab.evaluate(WATCH)
            of_page = time.process_time() - used
            tab.locator("#downloads").wait_for()
            tab.wait_for_timeout(500)
            if i:  # the first round warms up
                calls.append(call)
                steps.append(marks[0] - start)
                firsts.append(first)
                clips.append(clip)
                work.append(of_page / of_call)
        browser.close()
        close()
    beyond = [first - step for first, step in zip(firsts, steps, strict=True)]
    on_page = ratio(clips, calls)
    hardware = machine()
    print(sentence(hardware))
    print(f"model(…): {spread(calls)} s, its first step ends after {spread(steps)} s")
    print(f"on the page: the first preview after {spread(firsts)} s, the clip after {spread(clips)} s")
    print(f"CPU time of the process, relative to model(…): {spread(work)}")
    print(bar("first preview beyond the first step, s", median(beyond), BAR_FIRST, least=False))
    print(bar("clip on the page relative to model(…)", on_page.median, BAR_CLIP, least=False))
    save(args.json, hardware, calls=calls, steps=steps, firsts=firsts, clips=clips, work=work)


if __name__ == "__main__":
    run(main)
