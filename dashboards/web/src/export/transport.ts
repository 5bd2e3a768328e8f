/** Answers out of the file, to the questions that the dashboard asks the service. */

import type { SeriesFace } from "../lib/schema";
import { facts, json, names, part } from "./kept";

let series: Promise<SeriesFace> | null = null;

/** Of the lines in the file those that were asked for; the range is the file's. */
async function lines(keys: string[]): Promise<SeriesFace> {
  const all = await (series ??= json<SeriesFace>("series"));
  const wanted = keys.filter((key) => key in all.keys);
  return { ...all, keys: Object.fromEntries(wanted.map((key) => [key, all.keys[key]])) };
}

export async function ask(path: string): Promise<Response> {
  const asked = new URL(path, "file:///");
  const of = `/v1/runs/${encodeURIComponent(facts.run)}`;
  const what = asked.pathname === of ? "run" : asked.pathname.replace(`${of}/`, "").replace("/v1/", "");
  if (what === "series" && names.has(what)) {
    return Response.json(await lines((asked.searchParams.get("keys") ?? "").split(",")));
  }
  const name = what === "heatmap" ? `heatmap ${asked.searchParams.get("metric")}` : what;
  if (names.has(name)) return new Response(await part(name));
  const detail = `There is no ${what} in this file; the service has it where the run is still kept.`;
  return Response.json({ title: "Not in this file", detail }, { status: 404 });
}
