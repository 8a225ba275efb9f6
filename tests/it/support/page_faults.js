// What is wrong with this page for those who use it, with its height and the colour of its ground.
const faults = [];
const root = document.documentElement;
if (!root.lang) faults.push("no lang");
if (root.scrollWidth > window.innerWidth) faults.push(`${root.scrollWidth} px wide`);
if (!document.title) faults.push("no title");
if (document.querySelectorAll("h1").length !== 1) faults.push("not one h1");
for (const image of document.querySelectorAll("img:not([alt])")) faults.push(image.outerHTML);

for (const element of document.querySelectorAll("[aria-describedby], [aria-labelledby]")) {
  const ids = ["aria-describedby", "aria-labelledby"].flatMap((name) => element.getAttribute(name)?.split(/\s+/) ?? []);
  for (const id of ids) if (!document.getElementById(id)) faults.push(`no #${id}: ${element.outerHTML}`);
}
const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
if (new Set(ids).size !== ids.length) faults.push(`an id twice: ${ids}`);
let level = 1;
for (const { tagName } of document.querySelectorAll("h1, h2, h3, h4")) {
  if (Number(tagName[1]) > level + 1) faults.push(`${tagName} after H${level}`);
  level = Number(tagName[1]);
}
for (const time of document.querySelectorAll("time")) {
  if (Number.isNaN(Date.parse(time.dateTime))) faults.push(time.outerHTML);
}

const isSeen = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
for (const control of document.querySelectorAll("input:not([type=hidden]), button, select, textarea, a[href]")) {
  if (!isSeen(control)) continue;
  const labels = [...(control.labels ?? [])].map((label) => label.textContent).join("");
  const name = control.getAttribute("aria-label") || labels || control.textContent;
  if (!name.trim()) faults.push(`without a name: ${control.outerHTML}`);
}

// Colours as a browser computes them, as numbers (WCAG 2.2 §1.4.3).
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const numbers = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
};
const over = ([r, g, b, a], below) => [r, g, b].map((channel, i) => channel * a + below[i] * (1 - a));
const ground = (element) => {
  if (!element) return numbers(getComputedStyle(root).colorScheme === "dark" ? "#121212" : "#ffffff");
  const own = numbers(getComputedStyle(element).backgroundColor);
  return own[3] === 1 ? own : over(own, ground(element.parentElement));
};
const luminance = (colour) => {
  const [r, g, b] = colour.map((channel) => {
    const value = channel / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  if (!texts.currentNode.data.trim() || !isSeen(element) || element.closest(":disabled")) continue;
  const style = getComputedStyle(element);
  const below = ground(element);
  const [one, other] = [luminance(over(numbers(style.color), below)), luminance(below)];
  const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  const size = parseFloat(style.fontSize);
  const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  if (contrast < (isLarge ? 3 : 4.5)) {
    faults.push(`contrast ${contrast.toFixed(2)}: ${texts.currentNode.data.trim()}`);
  }
}
return { faults, height: root.scrollHeight, ground: ground(document.body).map(Math.round).join(" ") };
