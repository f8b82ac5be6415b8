//! As much of ELF as it takes to tell how a program is linked.

/// Whether an ELF file of 64 bits names an interpreter (program header type 3).
pub(crate) fn is_dynamic(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| elf.get(at..at + 2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    let headers = elf.get(32..40).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let (Some(headers), Some(size), Some(count)) = (headers, half(54), half(56)) else { return false };
    (0..usize::from(count)).any(|index| {
        let at = usize::try_from(headers).unwrap_or(usize::MAX).saturating_add(index * usize::from(size));
        elf.get(at..at.saturating_add(4)) == Some(&PT_INTERP.to_le_bytes())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_dynamic_program_is_known_by_its_interpreter() {
        assert!(is_dynamic(&fs::read(std::env::current_exe().unwrap()).unwrap()));
        assert!(!is_dynamic(b"\x7fELF"));
    }
}
