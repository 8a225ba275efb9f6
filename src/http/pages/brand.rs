//! Whoever runs the service: name, logo and colour, as pages carry them.

use std::fmt::Write as _;

use bytes::Bytes;
use url::Url;

/// The style of all pages.
const STYLE: &str = include_str!("style.css");

/// What is behind texts in the accent colour where it is light, and where it is dark: `--card`, `--page`.
const LIGHT: [Colour; 2] = [Colour([0xff, 0xff, 0xff]), Colour([0xf4, 0xf5, 0xf8])];
const DARK: [Colour; 2] = [Colour([0x18, 0x1c, 0x25]), Colour([0x0f, 0x12, 0x18])];

/// How much text must differ from what is behind it (WCAG 2.2 §1.4.3).
const CONTRAST: f64 = 4.5;

/// In how many steps a colour turns black or white.
const STEPS: u16 = 64;

/// What pages carry of whoever runs the service.
#[derive(Clone, Debug)]
pub struct Brand {
    pub(super) name: String,
    pub(super) logo: Option<String>,
    pub(super) base: String,
    /// Whether browsers reach the issuer by TLS.
    pub(super) is_https: bool,
    /// Where images of pages may be, for their policy.
    pub(super) images: String,
    /// The style sheet, in the brand's colour.
    pub(in crate::http) style: Bytes,
}

impl Brand {
    /// A brand of this name, with a logo and a colour where they are not empty; for an issuer whose
    /// URL has the path `base`, without a slash at the end.
    ///
    /// Text and the ring around what has the focus are in the colour, too: where it would not contrast
    /// with the page, a darker or a lighter one of it stands in.
    ///
    /// `is_https` says whether browsers reach the issuer by TLS, and are to do so from then on.
    pub fn new(name: &str, logo: &str, colour: &str, base: &str, is_https: bool) -> Self {
        let mut style = STYLE.to_owned();
        if let Some(colour) = Colour::parse(colour) {
            // Behind all others. Writing to a string never fails.
            let light = colour.readable_on(&LIGHT, Colour::BLACK);
            let dark = colour.readable_on(&DARK, Colour::WHITE);
            let _ = writeln!(
                style,
                "{}@media (prefers-color-scheme: dark) {{ {} }}",
                light.as_accent(),
                dark.as_accent().trim_end()
            );
        }
        let origin = Url::parse(logo).map(|logo| logo.origin().ascii_serialization());
        Self {
            name: name.to_owned(),
            logo: (!logo.is_empty()).then(|| logo.to_owned()),
            base: base.to_owned(),
            is_https,
            images: origin.map_or_else(|_| "data:".to_owned(), |origin| format!("{origin} data:")),
            style: style.into(),
        }
    }
}

/// A colour: red, green and blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Colour([u8; 3]);

impl Colour {
    const BLACK: Self = Self([0; 3]);
    const WHITE: Self = Self([0xff; 3]);

    /// Reads `#` and six hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let value = u32::from_str_radix(text.strip_prefix('#')?, 16).ok()?;
        let [_, red, green, blue] = value.to_be_bytes();
        (text.len() == 7).then_some(Self([red, green, blue]))
    }

    /// Relative luminance (WCAG 2.2, Terms).
    fn luminance(self) -> f64 {
        let [red, green, blue] = self.0.map(|channel| {
            let value = f64::from(channel) / 255.0;
            if value <= 0.04045 {
                value / 12.92
            } else {
                ((value + 0.055) / 1.055).powf(2.4)
            }
        });
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    /// The contrast ratio (WCAG 2.2, Terms): from 1 to 21.
    fn contrast(self, other: Self) -> f64 {
        let (one, other) = (self.luminance(), other.luminance());
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    /// This colour, as much nearer to `end` as it takes to be read on all of these.
    fn readable_on(self, backgrounds: &[Self], end: Self) -> Self {
        let mut mixed = (0..=STEPS).map(|step| self.towards(end, step));
        let is_readable = |colour: &Self| {
            let mut backgrounds = backgrounds.iter();
            backgrounds.all(|background| colour.contrast(*background) >= CONTRAST)
        };
        mixed.find(is_readable).unwrap_or(end)
    }

    /// The colour so many steps on the way to another one.
    fn towards(self, end: Self, step: u16) -> Self {
        let mut mixed = self.0;
        for (channel, end) in mixed.iter_mut().zip(end.0) {
            let (from, to) = (u16::from(*channel), u16::from(end));
            let mix = (from * (STEPS - step) + to * step) / STEPS;
            *channel = u8::try_from(mix).unwrap_or(u8::MAX);
        }
        Self(mixed)
    }

    /// Black or white, whichever is read better on this.
    fn text(self) -> Self {
        if self.contrast(Self::BLACK) > self.contrast(Self::WHITE) {
            Self::BLACK
        } else {
            Self::WHITE
        }
    }

    fn hex(self) -> String {
        let [red, green, blue] = self.0;
        format!("#{red:02x}{green:02x}{blue:02x}")
    }

    /// A rule of the style sheet.
    fn as_accent(self) -> String {
        let (accent, text) = (self.hex(), self.text().hex());
        format!(":root {{ --accent: {accent}; --accent-text: {text}; }}\n")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contrast(one: &str, other: &str) -> f64 {
        let parse = |text| Colour::parse(text).unwrap();
        parse(one).contrast(parse(other))
    }

    #[test]
    fn contrast_is_that_of_wcag() {
        for (one, other, ratio) in [
            ("#000000", "#ffffff", 21.0),
            ("#777777", "#ffffff", 4.478),
            ("#767676", "#ffffff", 4.542),
            ("#ff0000", "#ffffff", 3.998),
            ("#0000ff", "#000000", 2.444),
            ("#2f5bea", "#2f5bea", 1.0),
        ] {
            assert!(
                (contrast(one, other) - ratio).abs() < 0.001,
                "{one} {other}"
            );
            assert!(
                (contrast(other, one) - ratio).abs() < 0.001,
                "{one} {other}"
            );
        }
        for text in ["", "#12345", "#1234567", "123456", "#12345g", "#é1234"] {
            assert_eq!(Colour::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_backgrounds_are_those_of_the_style_sheet() {
        let (light, dark) = STYLE
            .split_once("@media (prefers-color-scheme: dark)")
            .unwrap();
        for (style, [card, page]) in [(light, LIGHT), (dark, DARK)] {
            for (name, colour) in [("card", card), ("page", page)] {
                let line = format!("--{name}: {};", colour.hex());
                assert!(style.contains(&line), "{line}");
            }
        }
        // Without a brand's colour it is the same.
        let of = |style: &str, name: &str| {
            let (_, rest) = style.split_once(&format!("--{name}: ")).unwrap();
            Colour::parse(&rest[..7]).unwrap()
        };
        for (style, backgrounds) in [(light, LIGHT), (dark, DARK)] {
            let accent = of(style, "accent");
            assert_eq!(accent.readable_on(&backgrounds, Colour::BLACK), accent);
            assert!(accent.contrast(of(style, "accent-text")) >= CONTRAST);
        }
    }

    #[test]
    fn a_colour_that_can_be_read_stays_as_it_is() {
        let brand = Brand::new("A", "", "#2f5bea", "", true);
        let style = String::from_utf8(brand.style.to_vec()).unwrap();
        let added = style.strip_prefix(STYLE).unwrap();
        assert!(
            added.starts_with(":root { --accent: #2f5bea; --accent-text: #ffffff; }\n"),
            "{added}"
        );
        assert!(
            added.contains("@media (prefers-color-scheme: dark) { :root { --accent: #"),
            "{added}"
        );
        assert!(!added[20..].contains("#2f5bea"), "{added}");
        assert_eq!(Brand::new("A", "", "", "", true).style, STYLE);
    }

    #[test]
    fn images_come_from_where_the_logo_is_and_nowhere_else() {
        let images = |logo| Brand::new("A", logo, "", "", true).images;
        assert_eq!(images(""), "data:");
        assert_eq!(
            images("https://Cdn.example:8443/a/logo.svg?x#y"),
            "https://cdn.example:8443 data:"
        );
        assert_eq!(
            images("https://cdn.example/logo.svg"),
            "https://cdn.example data:"
        );
    }

    proptest! {
        #[test]
        fn every_colour_can_be_read_on_every_page(colour: [u8; 3]) {
            let colour = Colour(colour);
            for (backgrounds, end) in [(LIGHT, Colour::BLACK), (DARK, Colour::WHITE)] {
                let accent = colour.readable_on(&backgrounds, end);
                for background in backgrounds {
                    prop_assert!(accent.contrast(background) >= CONTRAST);
                }
                prop_assert!(accent.contrast(accent.text()) >= CONTRAST);
            }
        }
    }
}
