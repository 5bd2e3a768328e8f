import { describe, expect, it } from "vitest";
import { num, v1 } from "./api";
import { columns, logTicks, reading, speaks } from "./chart";
import { clusters, flags, lives } from "./flags";
import * as f from "./format";
import { cells, due, slowest, unseen, words } from "./ranks";
import type { AlertFace, AttemptFace, EventFace, RankLine, RankStrips, SeriesFace } from "./schema";
import { hold, parseRunView, scaleOf, writeRunView, zoom, type RunView } from "./urlstate";

describe("the view in the URL", () => {
  it("survives writing and reading", () => {
    const view = {
      metric: "absmax", mode: "base", range: [100, 900], fold: ["blocks.0", "head"], row: 3,
      region: [120, 139], other: "yesterday/1",
      scale: { loss: "log", "layer:3:l2": "lin" },
    } satisfies RunView;
    const text = writeRunView("", view);
    expect(parseRunView(text)).toEqual(view);
  });
  it("keeps defaults out and foreign keys in", () => {
    const view = parseRunView("?project=a&m=nonsense&from=9&to=3&row=-1&diff=9-3");
    expect(view).toEqual({ metric: "l2", mode: "abs", range: null, fold: "auto", row: null, region: null, other: null, scale: {} });
    expect(writeRunView("?project=a&m=nan&from=1&to=5", view)).toBe("?project=a");
  });
  it("zooms around a step and stays inside the run", () => {
    expect(zoom([0, 100], [0, 100], 0.5, 50)).toEqual([25, 75]);
    expect(zoom([0, 100], [0, 100], 0.5, 0)).toEqual([0, 50]);
    expect(zoom([25, 75], [0, 100], 10)).toEqual([0, 100]);
    expect(zoom([50, 54], [0, 100], 0.1)[1] - zoom([50, 54], [0, 100], 0.1)[0]).toBe(4);
    expect(hold([-10, 20], [0, 100])).toEqual([0, 30]);
  });
});

describe("numbers in words", () => {
  it("have three digits, and exponents where they are small or large", () => {
    expect([0, 1.23456, 0.012345, 1.2e-7, 41_777, 3e-4, 1e7, NaN, -Infinity, null].map(f.value)).toEqual(
      ["0", "1.23", "0.0123", "1.2e-7", "41,777", "3e-4", "1e7", "NaN", "-Inf", "–"],
    );
  });
  it("tell an age in one word", () => {
    expect([-3, 4, 600, 7200, 200_000].map(f.age)).toEqual(["0s", "4s", "10m", "2h", "2d"]);
  });
  it("turn the words for non-finite values back", () => {
    expect([num("NaN"), num("-Infinity"), num(null), num(0)]).toEqual([NaN, -Infinity, null, 0]);
  });
  it("leave empty values out of a query", () => {
    expect(v1("runs", { q: "", project: null, limit: 5 })).toBe("/v1/runs?limit=5");
  });
});

const series: SeriesFace = {
  step: [0, 1, 2, 3],
  time_ns: [0, 1, 2, 3],
  reported: ["loss", "lr"],
  keys: {
    loss: {
      min: [1, 2, null, 4], max: [1, 2, null, 4], last: [1, 2, null, 4],
      nonfinite: [0, 0, 1, 0],
    },
    lr: { min: [null, null, null, null], max: [null, null, null, null], last: [null, null, null, null], nonfinite: [0, 0, 0, 0] },
  },
};
const line = [{ key: "loss", label: "loss" }];

describe("chart columns", () => {
  it("make a gap and an event of what is not finite", () => {
    const { data, bad } = columns(series, line, false, []);
    expect(data[0]).toEqual([0.5, 1.5, 2.5, 3.5]);
    expect(data[1]).toEqual([1, 2, null, 4]);
    expect(bad).toEqual([[2, 2]]);
  });
  it("never join two attempts by a line", () => {
    const { data } = columns(series, line, false, [1]);
    expect(data[0]).toEqual([0.5, 1, 1.5, 2.5, 3.5]);
    expect(data[1]).toEqual([1, null, 2, null, 4]);
  });
  it("leave out of a log axis what it cannot show", () => {
    const zero = { ...series, keys: { loss: { ...series.keys.loss, last: [0, -1, 2, 4] } } };
    expect(columns(zero, line, true, []).data[1]).toEqual([null, null, 2, 4]);
  });
  it("read a value under the cursor, and the last one without", () => {
    expect([reading(series, "loss", 1), reading(series, "loss", 2), reading(series, "loss", null)]).toEqual([2, NaN, 4]);
    expect(reading(series, "missing", null)).toBeNull();
  });
  it("know whether a key says anything", () => {
    expect([speaks(series, "loss"), speaks(series, "lr"), speaks(series, "none", "loss")]).toEqual([true, false, true]);
  });
});

describe("a chart's scale", () => {
  it("is its own until somebody chooses for one or for all", () => {
    const view = (search: string) => parseRunView(search);
    expect(scaleOf(view(""), "loss", "lin")).toBe("lin");
    expect(scaleOf(view("?y=loss:log"), "loss", "lin")).toBe("log");
    expect(scaleOf(view("?y=loss:log"), "lr", "lin")).toBe("lin");
    expect(scaleOf(view("?y=lin"), "grad_norm", "log")).toBe("lin");
    expect(writeRunView("?y=lin", { ...view(""), scale: {} })).toBe("");
  });
  it("has few labels over many decades, some within one, and round numbers within less", () => {
    expect(logTicks(1e-9, 1e3, 6)).toEqual([1e-8, 1e-6, 1e-4, 1e-2, 1, 100]);
    expect(logTicks(0.5, 9, 6)).toEqual([0.5, 1, 2, 5]);
    expect(logTicks(2.1, 2.4, 5)).toEqual([2.1, 2.2, 2.3, 2.4]);
    expect(logTicks(0, 1, 5)).toEqual([]);
  });
});

describe("ranks", () => {
  const rank = (n: number, seconds: (number | null)[]) =>
    ({ rank: n, state: "reporting", host: null, last_step: 9, lag_steps: 0, last_seen_ns: null,
      first_bad_step: null, drift_step: null, told: [1, 1], bad: [0, 0], seconds }) as RankLine;
  const all = {
    step: [0, 64], ranks: [rank(0, [1, 1]), rank(1, [1, 3]), rank(2, [1, null])],
    usual: [1, 2], slowest: [0, 300], longest: [1, 4], left_out: 448, left_out_odd: 0,
  } as Partial<RankStrips> as RankStrips;
  it("are compared with the median of all, shown or not", () => {
    expect(slowest(all, 0)).toBeNull();
    expect(slowest(all, 1)).toEqual({ rank: 300, times: 2 });
    expect(slowest(all, 7)).toBeNull();
    expect(cells(all, all.ranks[2])).toEqual([128, 128]);
    expect(cells(all, all.ranks[0])[1]).toBe(1);
    expect(cells(all, all.ranks[1])[1]).toBeGreaterThan(128);
  });
  it("left out are called calm only where all of them are", () => {
    expect(unseen(all)).toBe("448 ranks not shown, nothing is odd about those");
    expect(unseen({ ...all, left_out_odd: 388 })).toBe("448 ranks not shown, something is odd about 388 of them");
  });
  it("are asked for again when a column is full, or the answer is old", () => {
    expect(due(all, 63, 10_000)).toBe(false);
    expect(due(all, 64, 10_000)).toBe(true);
    expect(due(all, 0, 30_000)).toBe(true);
  });
  it("say what is odd about them", () => {
    const odd = { ...all.ranks[0], state: "silent", lag_steps: 3, last_seen_ns: 0, drift_step: 5 } as RankLine;
    expect(words(odd, 60_000)).toBe("rank 0: silent, step 9, 3 steps behind, last heard 60s ago, its replica differs from step 5");
  });
});

describe("flags", () => {
  const alert = {
    id: 1, alertname: "NonFiniteGradient", severity: "page", state: "firing", labels: {},
    annotations: { step: "500" }, active_at: "", fired_at: null, resolved_at: null, reason: "",
    fingerprint: "", muted: null, acknowledged_at: null, acknowledged_by: null,
  } as Partial<AlertFace> as AlertFace;
  const event = { time_ns: 0, rank: 0, attempt: 1, text: "", data: { ok: false } };
  const events = [
    { ...event, step: 501, kind: "checkpoint" },
    { ...event, step: 900, kind: "mark", text: "tokenizer" },
    { ...event, step: 10, kind: "phase" },
  ] as EventFace[];
  const attempts = [{ ordinal: 2, attempt: "b", status: "", first_step: 300, last_step: null, superseded_after: null }] as AttemptFace[];

  it("come from alerts and events, not from noise", () => {
    expect(flags([alert], events).map((flag) => flag.kind)).toEqual(["alert", "mark"]);
  });
  it("of lives come from attempts and checkpoints, each file once where it was saved", () => {
    const saved = { ...event, kind: "checkpoint", text: "a.pt", data: { ok: true, saved_step: 290 } };
    const looked = { ...saved, step: 299, data: { ...saved.data, verified: true } };
    const back = { ...event, step: 310, kind: "guard", text: "", data: { action: "rollback", step: 309, reason: "NaN" } };
    const found = lives(attempts, [...events, { ...saved, step: 291 }, looked, back] as EventFace[], 290);
    expect(found.map((flag) => [flag.kind, flag.step])).toEqual([
      ["restart", 300], ["failed", 501], ["good", 290], ["restored", 309],
    ]);
  });
  it("of a path that is written over tell each save, and the last good one", () => {
    const save = (step: number, more = {}) =>
      ({ ...event, step, kind: "checkpoint", text: "last.pt", data: { ok: true, saved_step: step, ...more } });
    const told = [save(500), save(1000), save(1500), save(1000), { ...save(1500, { verified: true }), step: 1600 }];
    expect(lives([], told as EventFace[], 1000).map((flag) => [flag.kind, flag.step])).toEqual([
      ["checkpoint", 500], ["good", 1000], ["checkpoint", 1500],
    ]);
    const looks = [save(1000, { verified: true }), save(2000, { verified: false, ok: false })];
    expect(lives([], looks as EventFace[], null).map((flag) => [flag.kind, flag.step])).toEqual([["failed", 2000]]);
  });
  it("join where they would overlap, and the loudest is seen", () => {
    const out = clusters([...flags([alert], events), ...lives(attempts, events, null)], 0, 1000, 500);
    expect(out.map((c) => [c.kind, c.more.length])).toEqual([["restart", 1], ["alert", 2], ["mark", 1]]);
  });
});

it("a budget that is gone says how often it was spent", () => {
  expect(f.budget(0.614)).toBe("61 %");
  expect(f.budget(0)).toBe("0 %");
  expect(f.budget(-0.4)).toBe("gone, 1.4× spent");
  expect(f.budget(-666.02)).toBe("gone, 670× spent");
  expect(f.budget(null)).toBe("–");
});
