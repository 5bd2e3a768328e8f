import { describe, expect, it } from "vitest";
import { beside } from "./beside";
import { joinEvents, joinHeat, joinSeries, missing, widthOf } from "./grow";
import { valueOf, type Matrix } from "./heat/decode";
import type { EventFace, SeriesFace } from "./schema";
import { parse } from "./sse";

function matrix(steps: number[], values: (number | null)[][], lo: number, hi: number, bucket = 1): Matrix {
  const byte = (v: number | null) => (v === null ? 0 : Number.isNaN(v) ? 255 : 1 + Math.round(((Math.log10(v) - lo) / (hi - lo)) * 253));
  return {
    rows: values.length, cols: steps.length, layers: values.map((_, k) => k), step: steps,
    step_last: steps.map((s) => s + bucket - 1), time_ns: steps, lo, hi, bucket, metric: "l2", agg: "max",
    nonfinite: values.flatMap((row, r) => row.flatMap((v, c) => (v !== null && Number.isNaN(v) ? [[r, c, 1, 0] as [number, number, number, number]] : []))),
    cells: Uint8Array.from(values.flat(), byte),
  };
}
const read = (m: Matrix) => [...m.cells].map((b) => (b === 255 ? NaN : valueOf(m, b)));

describe("what is missing", () => {
  it("is asked for with some columns before it, in columns of the same width", () => {
    const steps = Array.from({ length: 100 }, (_, k) => k);
    expect(missing(steps, 1, 104, 2000)).toEqual({ from: 92, count: 13 });
    expect(widthOf(0, 1999, 2000)).toBe(1);
    expect(widthOf(0, 2000, 2000)).toBe(2);
    const wide = Array.from({ length: 1500 }, (_, k) => k * 4);
    expect(missing(wide, 4, 6003, 2000)).toEqual({ from: 5968, count: 9 });
  });
  it("reaches as far as what is held, where that is ahead of the news", () => {
    const steps = Array.from({ length: 100 }, (_, k) => k);
    expect(missing(steps, 1, 80, 2000)).toEqual({ from: 92, count: 8 });
  });
  it("is everything where the columns get wider or nothing is held", () => {
    const steps = Array.from({ length: 2000 }, (_, k) => k);
    expect(missing(steps, 1, 2000, 2000)).toBeNull();
    expect(missing([], 1, 5, 2000)).toBeNull();
  });
});

describe("joined heatmaps", () => {
  it("take new columns, replace the open one, and keep every value within a byte", () => {
    const held = matrix([0, 1, 2], [[1, 2, 3], [10, 20, null]], 0, 2);
    const more = matrix([2, 3], [[3, 5000], [30, NaN]], 0.4, 4);
    const out = joinHeat(held, more)!;
    expect(out.step).toEqual([0, 1, 2, 3]);
    const [a, b] = [read(out).slice(0, 4), read(out).slice(4)];
    [1, 2, 3, 5000].forEach((v, k) => expect(Math.abs(Math.log10(a[k]! / v))).toBeLessThan(0.02));
    [10, 20, 30].forEach((v, k) => expect(Math.abs(Math.log10(b[k]! / v))).toBeLessThan(0.02));
    expect(b[3]).toBeNaN();
    expect(out.nonfinite).toEqual([[1, 3, 1, 0]]);
    expect(out.cells.length).toBe(8);
  });
  it("leave the scale alone while nothing is beyond it", () => {
    const held = matrix([0, 1], [[1, 100]], 0, 2);
    const out = joinHeat(held, matrix([2], [[10]], 1, 1.0001))!;
    expect([out.lo, out.hi]).toEqual([0, 2]);
    expect(out.cells.subarray(0, 2)).toEqual(held.cells);
  });
  it("are refused where rows or columns are of another kind", () => {
    const held = matrix([0, 1], [[1, 2]], 0, 2);
    expect(joinHeat(held, matrix([2, 4], [[1, 2]], 0, 2, 2))).toBeNull();
    expect(joinHeat(held, matrix([2], [[1], [2]], 0, 2))).toBeNull();
    expect(joinHeat(held, { ...matrix([2], [[1]], 0, 2), metric: "rms" })).toBeNull();
  });
});

describe("joined series and events", () => {
  const series = (step: number[], last: (number | null)[]): SeriesFace => ({
    step, time_ns: step, reported: ["loss"],
    keys: { loss: { min: last, max: last, last, nonfinite: last.map((v) => (v === null ? 1 : 0)) } },
  });
  it("replace what came again and go on after it", () => {
    const out = joinSeries(series([0, 1, 2], [1, 2, null]), { ...series([2, 3], [3, 4]), reported: ["lr"] });
    expect(out.step).toEqual([0, 1, 2, 3]);
    expect(out.keys.loss.last).toEqual([1, 2, 3, 4]);
    expect(out.keys.loss.nonfinite).toEqual([0, 0, 0, 0]);
    expect(out.reported).toEqual(["loss", "lr"]);
    expect(joinSeries(out, series([], []))).toBe(out);
  });
  it("keep an event once", () => {
    const event = (step: number) => ({ step, kind: "mark" }) as EventFace;
    const out = joinEvents({ items: [event(1), event(5)] }, { items: [event(5), event(6)] }, 5);
    expect(out.items.map((item) => item.step)).toEqual([1, 5, 6]);
  });
});

describe("two runs", () => {
  it("share the steps of both, and no line goes on beyond its own end", () => {
    const run = (step: number[]): SeriesFace => ({
      step, time_ns: step, reported: ["loss"],
      keys: { loss: { min: step, max: step, last: step, nonfinite: step.map(() => 0) } },
    });
    const out = beside(run([0, 2, 4, 6]), run([0, 1, 2, 3, 9]));
    expect(out.step).toEqual([0, 1, 2, 3, 4, 6]);
    expect(out.keys.loss.last).toEqual([0, 0, 2, 2, 4, 6]);
    expect(out.keys["other:loss"].last).toEqual([0, 1, 2, 3, null, null]);
  });
});

describe("server-sent events", () => {
  it("come whole or wait for the rest, and beats are none", () => {
    const first = parse(': beat\n\nid: a.1\nevent: run.update\ndata: {"x":1}\n\nid: a.2\nev');
    expect(first.messages).toEqual([{ id: "a.1", event: "run.update", data: { x: 1 } }]);
    expect(parse(`${first.rest}ent: resync\ndata: {}\n\n`).messages).toEqual([{ id: "a.2", event: "resync", data: {} }]);
  });
});
