/** Links and choices inside one file: what it holds is a place on the page, all else the service's. */

import { facts } from "./kept";

export type PageName = "run" | "alert";

const RUN = `/runs/${encodeURIComponent(facts.run)}`;

/** Where a path lives on the service: in the run's own project. */
function live(path: string): string {
  const at = new URL(path, facts.service);
  at.searchParams.set("project", facts.project);
  return at.href;
}

/** Where a path of the dashboard lives now. */
function place(path: string): string {
  const at = new URL(path, facts.service);
  if (at.pathname === RUN) return "#main";
  const alert = /^\/alerts\/(\d+)$/.exec(at.pathname);
  if (alert && document.getElementById(`alert-${alert[1]}`)) return `#alert-${alert[1]}`;
  return live(path);
}

class Router {
  search = $state("");
  readonly project = null;

  constructor() {
    document.addEventListener("click", (event) => this.#click(event));
  }

  href(path: string): string {
    return live(path);
  }

  query(search: string): void {
    this.search = search;
  }

  /**
   * A link to steps of this run shows them; one to an alert of this file goes to its story. A link
   * with `data-live` leads to the service, whatever the file holds.
   */
  #click(event: MouseEvent): void {
    const link = (event.target as Element).closest("a");
    const href = link?.getAttribute("href");
    if (!link || "live" in link.dataset || !href || href.startsWith("#") || event.defaultPrevented) return;
    const at = new URL(href, facts.service);
    const to = at.origin === new URL(facts.service).origin ? place(href) : at.href;
    event.preventDefault();
    if (!to.startsWith("#")) {
      open(to, "_blank", "noopener");
      return;
    }
    at.searchParams.delete("project");
    if (at.search && at.pathname === RUN) this.search = at.search;
    const target = document.getElementById(to.slice(1));
    if (target instanceof HTMLDetailsElement) target.open = true;
    target?.scrollIntoView({ block: "start" });
    (target?.querySelector("summary") ?? target)?.focus({ preventScroll: true });
  }
}

export const router = new Router();
