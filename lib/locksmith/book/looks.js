// Run in a page: what axe-core, which is there already, finds wrong with it; and what is too wide.

const STILL = "*, *::before, *::after { animation: none !important; transition: none !important }";

// The contrast where axe-core leaves it open, as of words broken over lines and of text in the very
// colour of what is behind it: with the nearest background, which counts as 1 where it is a picture.
function contrast(text) {
  const {Color, getContrast} = axe.commons.color;
  const parsed = name => { const color = new Color(); color.parseString(name); return color; };
  let behind = text, style = getComputedStyle(text);
  const color = style.color;
  while (style.backgroundColor === "rgba(0, 0, 0, 0)" && style.backgroundImage === "none") {
    behind = behind.parentElement;
    if (!behind) return getContrast(parsed("rgb(255, 255, 255)"), parsed(color));
    style = getComputedStyle(behind);
  }
  if (style.backgroundImage !== "none") return 1;
  return getContrast(parsed(style.backgroundColor), parsed(color));
}

async function faults() {
  document.head.append(Object.assign(document.createElement("style"), {textContent: STILL}));
  document.querySelectorAll("details").forEach(e => { e.open = true; });
  const told = await axe.run({
    runOnly: ["color-contrast", "image-alt", "link-name", "document-title"],
    checks: {"color-contrast": {options: {ignoreLength: true,
                                          contrastRatio: {large: {expected: 4.5}}}}},
    resultTypes: ["violations", "incomplete"], elementRef: true,
  });
  const open = told.incomplete.flatMap(rule => rule.nodes.filter(
    node => rule.id !== "color-contrast" || contrast(node.element) < 4.5));
  return [...told.violations.flatMap(rule => rule.nodes), ...open].map(node => ({html: node.html,
    says: [...node.any, ...node.all, ...node.none].map(check => check.message).join("; ")}));
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
  return (causes.length ? causes : [document.body]).map(e => ({html: e.outerHTML,
    says: `${root.scrollWidth} pixels wide in a window of ${edge}`}));
}
