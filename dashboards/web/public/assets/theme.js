// Runs before the first paint, so that a chosen theme or density never flashes the other one.
try {
  const root = document.documentElement.dataset;
  const asked = location.pathname.startsWith("/embed/") && new URLSearchParams(location.search).get("theme");
  const theme = asked || localStorage.getItem("gradwarden.theme");
  if (theme === "dark" || theme === "light") root.theme = theme;
  const kept = JSON.parse(localStorage.getItem("gradwarden.prefs") || "{}");
  if (kept.density === "comfortable") root.density = kept.density;
} catch {
  // Storage may be forbidden; the system's theme is then the theme, and rows are compact.
}
