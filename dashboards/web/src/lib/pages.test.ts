import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Held } from "./held.svelte";
import { cause, cost, evidence, incidents, matchersOf, told } from "./incidents";
import { parse, plainText, safeHref, spans, type Block } from "./markdown";
import type { AlertDetail, AlertFace, BurnFace, SloFace, TimelineFace } from "./schema";
import { byNeed, loudest, percent, rates } from "./slo";
import { LONG, matchers, parseMatcher, rowsOf, writeMatcher } from "./silencing";
import { bands, lines, TICK } from "./story";

function alert(id: number, alertname: string, more: Partial<AlertFace> = {}): AlertFace {
  return {
    id, alertname, severity: "page", state: "firing", labels: { alertname, run: "r1" }, annotations: {},
    active_at: null, fired_at: null, resolved_at: null, reason: "condition", fingerprint: "", muted: null,
    acknowledged_at: null, acknowledged_by: null, owner: null, runbook_url: null, impact: null,
    last_checkpoint: null, checkpoint_note: null, first_action: null, notified: [], ...more,
  };
}

describe("incidents", () => {
  it("are one for a run and a cause, with what the cause brought about inside", () => {
    const found = incidents([
      alert(1, "NonFiniteLoss", { muted: "inhibited by NonFiniteGradient" }),
      alert(2, "NonFiniteGradient"),
      alert(3, "NonFiniteGradient"),
      alert(4, "NonFiniteGradient", { labels: { run: "r2" } }),
    ]);
    expect(found.map((one) => [one.lead.id, one.more.length, one.effects.length])).toEqual([[2, 1, 1], [4, 0, 0]]);
  });
  it("keep an effect whose cause is gone, and put silenced ones last", () => {
    const found = incidents([
      alert(1, "NonFiniteLoss", { muted: "inhibited by NonFiniteGradient" }),
      alert(2, "RunStalled", { muted: "silence 3" }),
      alert(3, "LossSpike", { state: "pending", severity: "ticket" }),
    ]);
    expect(found.map((one) => [one.lead.id, one.silenced])).toEqual([[1, false], [3, false], [2, true]]);
    expect(cause(found[2].lead)).toBeNull();
  });
  it("say what they cost in words that fit", () => {
    const impact = { gpus: 64, gpu_hours: 6.4, devices: "GPU" as const, since: null };
    expect(cost(impact)).toBe("64 GPUs, 6.4 GPU-hours since the first bad step");
    expect(cost({ ...impact, gpus: 1, gpu_hours: 0.2 })).toBe("1 GPU, 12 GPU-minutes since the first bad step");
    expect(cost({ ...impact, gpus: 1, gpu_hours: 0.001, devices: "process" })).toContain("less than a process-minute");
  });
  it("name each receiver once, and those that could not be told", () => {
    const one = { at: null, why: "firing", attempts: 1, detail: null };
    const list = [
      { ...one, receiver: "ops", ok: true, state: "sent" },
      { ...one, receiver: "ops", ok: true, state: "sent" },
      { ...one, receiver: "pager", ok: false, state: "dead" },
      { ...one, receiver: "slow", ok: null, state: "waiting" },
    ];
    expect(told(list)).toEqual({ good: ["ops"], bad: ["pager (dead)"] });
  });
  it("lead to the run at the step, and to matchers that cover them alone", () => {
    const one = alert(1, 'Odd"Name', { annotations: { step: "20" }, labels: { run: "a/b" } });
    expect(evidence(one)).toBe("/runs/a%2Fb?mode=base&from=0&to=70");
    expect(matchersOf(one)).toEqual(['alertname="Odd\\"Name"', 'run="a/b"']);
    expect(evidence(alert(1, "Watchdog", { labels: {} }))).toBeNull();
  });
});

describe("Markdown", () => {
  it("of every runbook is a tree without left-over markup", () => {
    const files = import.meta.glob<string>("../../../../docs/runbooks/*.md", { query: "?raw", import: "default", eager: true });
    expect(Object.keys(files).length).toBeGreaterThan(30);
    for (const [name, source] of Object.entries(files)) {
      const blocks = parse(source);
      expect(blocks[0]).toMatchObject({ kind: "heading", level: 1 });
      const text = (block: Block) =>
        block.kind === "code" ? [] : (block.kind === "list" ? block.items.flat() : block.spans).filter((span) => span.kind !== "code");
      for (const span of blocks.flatMap(text)) expect(`${name}: ${span.text}`).not.toMatch(/\*\*|`|\]\(|^\s*\d\. /);
      expect(blocks.some((block) => block.kind === "list" && block.ordered), name).toBe(true);
    }
  });
  it("never makes a link of anything but the web and sibling runbooks", () => {
    expect(["javascript:alert(1)", "data:text/html,x", "//evil.example", "/v1/tokens", "../x.md"].map(safeHref)).toEqual(
      [null, null, null, null, null],
    );
    expect([safeHref("https://a.example/x"), safeHref("LossSpike.md")]).toEqual(["https://a.example/x", "/runbooks/LossSpike"]);
    expect(spans("[click](javascript:alert(1)) <b>x</b>")).toEqual([
      { kind: "text", text: "click" },
      { kind: "text", text: ") <b>x</b>" },
    ]);
  });
  it("joins wrapped lines, keeps code as it is, and ends at an open fence", () => {
    const blocks = parse("## A `b`\ntext\nmore\n\n1. one\n   two\n2. three\n\n```sh\nrm -- *\n");
    expect(blocks.map((block) => block.kind)).toEqual(["heading", "paragraph", "list", "code"]);
    expect(blocks[2].kind === "list" && blocks[2].items.map(plainText)).toEqual(["one two", "three"]);
    expect(blocks[3]).toMatchObject({ text: "rm -- *\n" });
  });
});

describe("matchers of a silence", () => {
  it("survive being written and read", () => {
    for (const row of [
      { label: "run", op: "=~" as const, value: "gpt-.*\\d" },
      { label: "alertname", op: "!=" as const, value: 'a"b\\' },
    ]) expect(parseMatcher(writeMatcher(row))).toEqual(row);
    expect(parseMatcher("nonsense")).toBeNull();
  });
  it("leave out what is still being typed, and begin with the alert's own", () => {
    expect(matchers([{ label: "run", op: "=", value: "" }, { label: "owner", op: "=", value: "mei" }])).toEqual(['owner="mei"']);
    const { rows, more } = rowsOf(alert(1, "A", { labels: { project: "p", alertname: "A", run: "r", owner: "mei" } }));
    expect([rows.map((row) => row.label), more.map((row) => row.label)]).toEqual([["alertname", "run"], ["owner"]]);
  });
  it("ask twice from a day on", () => expect(LONG).toBe(86_400));
});

describe("the story of an alert", () => {
  const line = (second: number, kind: TimelineFace["kind"], more: Partial<TimelineFace> = {}): TimelineFace => ({
    at: new Date(second * 1000).toISOString(), kind, from: null, to: null, reason: "condition", who: null,
    ok: null, text: null, annotations: {}, ...more,
  });
  const story = (timeline: TimelineFace[]) => ({ ...alert(1, "A"), timeline, deliveries: [] }) as AlertDetail;

  it("has bands from state to state, held back or not, and none behind its end", () => {
    const one = story([line(0, "pending"), line(30, "firing"), line(31, "notified"), line(60, "muted"), line(90, "unmuted"), line(100, "resolved")]);
    expect(bands(one, 500_000).map((band) => [band.kind, (band.to - band.from) / 1000])).toEqual([
      ["pending", 30], ["firing", 30], ["muted", 30], ["firing", 10],
    ]);
  });
  it("goes on until now while it fires", () => {
    expect(bands(story([line(10, "firing")]), 25_000)).toEqual([{ from: 10_000, to: 25_000, kind: "firing" }]);
  });
  it("tells ticks from notes, and who was not told", () => {
    const told = lines(story([
      line(1, "notified", { who: "ops", ok: false, text: "HTTP 500" }),
      line(2, "note", { who: "mei", text: `${TICK}Stop the run.` }),
      line(3, "note", { who: "mei", text: "bad shard" }),
    ]));
    expect(told.map((one) => [one.text, one.bad])).toEqual([
      ["ops was not told", true], ["mei ticked a step", false], ["note of mei", false],
    ]);
  });
});

describe("objectives", () => {
  const pair = (word: BurnFace["word"], long: BurnFace["long"]): BurnFace => ({
    severity: "page", long_s: 3600, short_s: 300, long, short: 16, limit: 14.4, word,
  });
  it("are never shown as met by rounding", () => {
    expect([percent(0.99949, 2), percent(0.999, 3), percent(1), percent(null), percent(0.9996, 3)]).toEqual(
      ["99.94 %", "99.9 %", "100 %", "–", "99.96 %"],
    );
  });
  it("speak by their most urgent windows", () => {
    const burn = [pair("Acceptable", 99), pair("Recovering", 2), pair("Critical", "Infinity")];
    expect(loudest(burn)?.word).toBe("Critical");
    expect(rates(burn[2])).toBe("60m / 5m: Inf× / 16×, limit 14.4");
    expect(loudest([])).toBeNull();
  });
  it("stand in the order of need: firing, then what has least left, then what has no data", () => {
    const slo = (name: string, left: number | null, alerts: number[] = []) =>
      ({ name, budget_left: left, enough_data: left !== null, alerts }) as unknown as SloFace;
    const list = [slo("new", null), slo("well", 0.9), slo("low", -0.2), slo("loud", 0.5, [7])];
    expect(list.sort(byNeed).map((one) => one.name)).toEqual(["loud", "low", "well", "new"]);
  });
});

describe("what was done with one tap", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());
  const deed = (send: () => Promise<unknown>) => ({ key: "ack:1", words: "Acknowledged", send });

  it("is sent after five seconds, and not before", async () => {
    const [held, send] = [new Held(), vi.fn(async () => null)];
    held.do(deed(send));
    await vi.advanceTimersByTimeAsync(4999);
    expect([held.has("ack:1"), send.mock.calls.length]).toEqual([true, 0]);
    await vi.advanceTimersByTimeAsync(2);
    expect(send).toHaveBeenCalledTimes(1);
  });
  it("is never sent once it was taken back", async () => {
    const [held, send] = [new Held(), vi.fn(async () => null)];
    held.do(deed(send));
    held.undo("ack:1");
    await vi.advanceTimersByTimeAsync(60_000);
    expect([held.has("ack:1"), send.mock.calls.length]).toEqual([false, 0]);
  });
  it("is sent at once when the page goes away, and only once", async () => {
    const [held, send] = [new Held(), vi.fn(async () => null)];
    held.do(deed(send));
    held.flush();
    held.flush();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(send).toHaveBeenCalledTimes(1);
  });
  it("counts as not done when it was refused, and can be tried again", async () => {
    const held = new Held();
    const send = vi.fn().mockRejectedValueOnce(new Error("no")).mockResolvedValue(null);
    held.do(deed(send));
    await vi.advanceTimersByTimeAsync(5001);
    expect([held.has("ack:1"), held.list[0].error?.message]).toEqual([false, "no"]);
    held.retry("ack:1");
    await vi.advanceTimersByTimeAsync(1);
    expect([held.has("ack:1"), send.mock.calls.length]).toEqual([true, 2]);
  });
});
