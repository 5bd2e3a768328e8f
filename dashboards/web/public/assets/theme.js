// Runs before the first paint, so that a chosen theme never flashes the other one.
try {
  const asked = location.pathname.startsWith("/embed/") && new URLSearchParams(location.search).get("theme");
  const theme = asked || localStorage.getItem("gradwarden.theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be forbidden; the system's theme is then the theme.
}
