// Run in a page: what axe-core, which is there already, finds wrong with it; and what is too wide.

const STILL = "*, *::before, *::after { animation: none !important; transition: none !important }";

async function faults() {
  document.head.append(Object.assign(document.createElement("style"), {textContent: STILL}));
  document.querySelectorAll("details").forEach(e => { e.open = true; });
  const told = await axe.run({
    runOnly: ["color-contrast", "image-alt", "link-name", "document-title"],
    checks: {"color-contrast": {options: {ignoreLength: true,
                                          contrastRatio: {large: {expected: 4.5}}}}},
    resultTypes: ["violations", "incomplete"],
  });
  return [...told.violations, ...told.incomplete].flatMap(rule => rule.nodes.map(node => ({
    sure: told.violations.includes(rule), html: node.html,
    says: [...node.any, ...node.all, ...node.none].map(check => check.message).join("; ")})));
}

// The innermost blocks that reach beyond the right edge, where nothing around them scrolls.
function wide() {
  const root = document.documentElement, edge = root.clientWidth;
  if (root.scrollWidth <= edge) return [];
  const out = e => e.clientWidth && e.getBoundingClientRect().left + e.scrollWidth > edge + 1;
  const scrolls = e => e && e !== document.body && (getComputedStyle(e).overflowX !== "visible"
    || getComputedStyle(e).position === "fixed" || scrolls(e.parentElement));
  const causes = [...document.body.querySelectorAll("*")].filter(
    e => out(e) && !scrolls(e) && ![...e.children].some(out));
  return (causes.length ? causes : [document.body]).map(e => ({
    sure: true, html: e.outerHTML, says: `${root.scrollWidth} pixels wide in a window of ${edge}`}));
}
